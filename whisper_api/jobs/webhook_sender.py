"""Sends webhook deliveries in threads. While nothing is due, one thread waits and the others end.

Each attempt is a POST to an address that was checked as those of ``url`` are, and stays within a time. A delivery is
tried again after the pauses that Standard Webhooks names, about three days in all, and varied, so that deliveries which
failed together do not come back together. A receiver that does not answer holds a few threads and no more.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import collections
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable

from msgspec.structs import replace

from whisper_api.errors import StorageError, WebhookNotFound, WhisperApiError
from whisper_api.jobs.webhook_requests import Answer, WebhookRequests
from whisper_api.store.deliveries import Delivery
from whisper_api.store.jobs import JobStore
from whisper_api.telemetry import Metrics
from whisper_api.webhooks import TEST_EVENT, signature

log = logging.getLogger("whisper_api.jobs")

# Seconds before the second and each later attempt.
DELAYS = (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
# Each pause is longer or shorter by up to this share.
JITTER = 0.1
# A longer Retry-After counts as this.
LONGEST_RETRY_AFTER = 24 * 3600.0
THREADS = 16
# Of the threads, a receiver may hold so many, and a key with several receivers so many.
PER_TARGET = 2
PER_OWNER = 8
# The clock may be set while a thread waits.
LONGEST_WAIT_SECONDS = 600.0
RETRY_SECONDS = 3.0
# Attempts that have begun may take this long when the service is closed; then their connections are broken.
CLOSE_SECONDS = 1.0
GONE = 410


def pause_after(step: int, retry_after: float, chance: float) -> float | None:
    """Seconds from a failed attempt to the next; None when there is none.

    Args:
        step: number of attempts so far.
        retry_after: seconds that the receiver has asked to wait.
        chance: from 0 to 1, which varies the pause.
    """
    if step > len(DELAYS):
        return None
    varied = DELAYS[step - 1] * (1 + JITTER * (2 * chance - 1))
    return max(varied, min(retry_after, LONGEST_RETRY_AFTER))


class WebhookSender:
    """Sends the deliveries of a store.

    A delivery stays as it is in the store until an attempt has ended, so the next process makes the attempt again that
    this one could not end.

    Args:
        store: the store of the deliveries.
        metrics: counts the attempts.
        body_of: makes the body of a delivery, as JSON.
        secrets_of: returns the secrets that sign a delivery.
        private_hosts: hosts whose addresses need not be public.
        clock: returns seconds since 1970.
    """

    def __init__(
        self,
        store: JobStore,
        metrics: Metrics,
        body_of: Callable[[Delivery], bytes],
        secrets_of: Callable[[Delivery], tuple[str, ...]],
        *,
        private_hosts: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._body_of = body_of
        self._secrets_of = secrets_of
        self._requests = WebhookRequests(private_hosts, clock)
        self._clock = clock
        # Held while a delivery is chosen, so that no two threads choose the same. Held before _lock.
        self._choosing = threading.Lock()
        self._lock = threading.Lock()
        self._called = threading.Condition(self._lock)
        # Guarded by _lock:
        self._open = False
        self._calls = 0
        self._idles = False
        self._threads: set[threading.Thread] = set()
        self._active: dict[int, Delivery] = {}
        self._closing = threading.Event()

    def start(self) -> None:
        """Send what is due, and what will be."""
        with self._lock:
            self._open = True
        self.wake()

    def wake(self) -> None:
        """Look for due deliveries in a thread. Does not block."""
        with self._lock:
            self._calls += 1
            if not self._call_idle():
                self._add_thread()

    def close(self) -> None:
        """End the threads. Attempts that have not ended are made again by the next process."""
        with self._lock:
            self._open = False
            self._call_idle()
            threads = list(self._threads)
        _join(threads, CLOSE_SECONDS)
        self._closing.set()
        self._requests.close()
        # A thread that looks up a name may take longer. It finds the sender closed then.
        _join(threads, RETRY_SECONDS)

    def _call_idle(self) -> bool:
        """Let the thread that waits look for deliveries; False when none waits. Needs _lock."""
        idles, self._idles = self._idles, False
        self._called.notify()
        return idles

    def _add_thread(self) -> None:
        """Start one more thread, if there may be one more. Needs _lock."""
        if self._open and len(self._threads) < THREADS:
            thread = threading.Thread(target=self._run, name="webhook", daemon=True)
            self._threads.add(thread)
            thread.start()

    def _run(self) -> None:
        """Make attempts. Of the threads without one, one waits for the next, and the others end."""
        while True:
            with self._lock:
                calls = self._calls
            now = self._clock()
            due: float | None = None
            try:
                delivery = self._choose(now)
                if delivery is None:
                    due = self._store.next_due(now)
            except Exception as error:
                # A thread that ends still counts as one of the threads, and nobody would look for deliveries.
                log.error("webhook deliveries cannot be read: %s", error, exc_info=not isinstance(error, StorageError))
                delivery, due = None, now + RETRY_SECONDS
            if delivery is None:
                with self._lock:
                    # A call that found all threads at work counts on one of them to look again.
                    if calls != self._calls and self._open:
                        continue
                    # The thread that waits looks again, since this one may have left something that is due sooner.
                    if self._call_idle() or not self._open:
                        self._threads.discard(threading.current_thread())
                        return
                    self._idles = True
                    seconds = LONGEST_WAIT_SECONDS if due is None else min(LONGEST_WAIT_SECONDS, due - now)
                    if not self._called.wait(seconds):
                        self._idles = False
                continue
            try:
                self._attempt(delivery)
            except Exception:
                # The delivery is still due: without a pause, this thread would take it again at once.
                log.exception("a webhook delivery has failed", extra={"delivery_id": delivery.delivery_id})
                self._closing.wait(RETRY_SECONDS)
            finally:
                with self._lock:
                    del self._active[delivery.seq]

    def _choose(self, now: float) -> Delivery | None:
        """A due delivery whose receiver and owner may have one more thread; another thread looks for the next one."""
        with self._choosing:
            with self._lock:
                if not self._open:
                    return None
                active = list(self._active.values())
            targets = collections.Counter(each.target for each in active)
            # Without authorization all callers have the same owner.
            owners = collections.Counter(each.owner for each in active if each.owner)
            found = self._store.due_deliveries(
                now,
                limit=2,
                seqs=[each.seq for each in active],
                targets=[target for target, count in targets.items() if count >= PER_TARGET],
                owners=[owner for owner, count in owners.items() if count >= PER_OWNER],
            )
            if not found:
                return None
            with self._lock:
                self._active[found[0].seq] = found[0]
        if len(found) > 1:
            self.wake()
        return found[0]

    def _attempt(self, delivery: Delivery) -> None:
        about = {"delivery_id": delivery.delivery_id, "job_id": delivery.job_id, "attempt": delivery.attempts + 1}
        try:
            answer = self._post(delivery)
        except Exception as error:
            trace = None if isinstance(error, WhisperApiError) else error
            log.error("a webhook cannot be sent: %s", error, exc_info=trace, extra=about)
            answer = Answer(sent=False)
        if self._closing.is_set() and answer.status is None:
            return
        now = self._clock()
        # A receiver that is gone wants no more attempts, and somebody waits for the outcome of a test.
        is_last = answer.error is None or answer.status == GONE or delivery.type == TEST_EVENT
        pause = None if is_last else pause_after(delivery.step + 1, answer.retry_after, random.random())
        next_at = None if pause is None else now + pause
        self._until_stored(
            lambda: self._store.note_attempt(delivery, now, status=answer.status, error=answer.error, next_at=next_at)
        )
        if answer.error is None:
            log.info("webhook delivered", extra={**about, "status": answer.status})
            self._metrics.webhook_attempted("delivered")
        elif next_at is None:
            log.warning("webhook given up: %s", answer.error, extra=about)
            self._metrics.webhook_attempted("failed")
        else:
            log.info("webhook failed: %s", answer.error, extra={**about, "next_seconds": round(next_at - now)})
            self._metrics.webhook_attempted("retried")
        if answer.status == GONE and delivery.endpoint is not None:
            self._disable(delivery)
        elif answer.error is not None and answer.retry_after > 0:
            until = now + min(answer.retry_after, LONGEST_RETRY_AFTER)
            self._until_stored(lambda: self._store.postpone(delivery, until))

    def _disable(self, delivery: Delivery) -> None:
        """Disable the endpoint of a receiver that wants no more deliveries."""
        reason = f"the receiver answered {GONE} at {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(self._clock()))}"
        now = self._clock()
        try:
            self._until_stored(
                lambda: self._store.change_endpoint(
                    delivery.owner,
                    delivery.endpoint_id or "",
                    lambda found: replace(found, enabled=False, disabled_reason=reason, updated_at=now),
                )
            )
        except WebhookNotFound:
            return
        log.warning("webhook endpoint disabled: %s", reason, extra={"endpoint_id": delivery.endpoint_id})

    def _post(self, delivery: Delivery) -> Answer:
        """Make an attempt."""
        if delivery.url is None:
            return Answer()
        body = self._body_of(delivery)
        secrets = self._secrets_of(delivery)
        timestamp = int(self._clock())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "whisper-api",
            "webhook-id": delivery.delivery_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(secrets, delivery.delivery_id, timestamp, body),
        }
        return self._requests.post(delivery.url, body, headers)

    def _until_stored(self, action: Callable[[], object]) -> None:
        """Repeat an action on the database until it succeeds or the sender is closed.

        An attempt whose outcome is not stored would be made again at once, and again.
        """
        while True:
            try:
                action()
                return
            except StorageError as error:
                log.error("the outcome of a webhook delivery cannot be stored: %s", error)
            if self._closing.wait(RETRY_SECONDS):
                return


def _join(threads: Iterable[threading.Thread], seconds: float) -> None:
    """Wait for the ends of threads, not longer than a time for all of them."""
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
