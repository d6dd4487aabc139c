"""Deliveries: when they are tried again, what is heeded, and that a slow receiver stops no other."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fakes import new_service, submit, until
from hypothesis import given
from hypothesis import strategies as st
from receiver import Receiver, receiver
from store.test_jobs import TRANSCRIPT, new_job

from whisper_api.errors import StorageFull
from whisper_api.jobs import webhook_requests, webhook_sender
from whisper_api.jobs.retention import Retention
from whisper_api.jobs.webhook_requests import Bodies
from whisper_api.jobs.webhook_sender import DELAYS, JITTER, LONGEST_RETRY_AFTER, WebhookSender, pause_after
from whisper_api.jobs.webhooks import EndpointChange, Webhooks
from whisper_api.outbound.connecting import ConnectRules
from whisper_api.store.deliveries import Delivery, DeliveryFilter
from whisper_api.store.jobs import JobStore
from whisper_api.telemetry import Metrics
from whisper_api.testing import FakeExecutor

DAY = 24 * 3600.0
MakeSender = Callable[..., "Sending"]


@pytest.fixture
def receiving() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


class Sending:
    """A sender with a clock that the test moves, and the store of its deliveries."""

    def __init__(self, store: JobStore, hosts: frozenset[str]) -> None:
        self.store = store
        self.now = 1_900_000_000.0
        self.webhooks = Webhooks(store, hosts)
        self.outcomes: list[str] = []
        metrics = Metrics(lambda: pytest.fail("the state is not read"))
        metrics.webhook_attempted = self.outcomes.append  # type: ignore[assignment, method-assign]
        self.sender = WebhookSender(
            store,
            metrics,
            Bodies(store).body_of,
            self.webhooks.secrets_of,
            private_hosts=hosts,
            clock=lambda: self.now,
        )
        store.on_deliveries = self.sender.wake

    def end_job(self, job_id: str, **fields: Any) -> None:
        """Complete a job."""
        self.store.add(new_job(job_id, owner=fields.pop("owner", ""), **fields))
        self.store.claim(job_id, self.now)
        assert self.store.complete(job_id, TRANSCRIPT, self.now)

    def all(self) -> list[Delivery]:
        """All deliveries, the oldest first."""
        return self.store.deliveries(None, DeliveryFilter(), limit=1000)[::-1]

    def settled(self, *states: str) -> list[Delivery]:
        """Wait until the deliveries are in these states, oldest first, and no thread is at work."""
        until(lambda: [each.state for each in self.all()] == list(states) and self.rests(), str(states))
        return self.all()

    def tried(self, attempts: int) -> Delivery:
        """Wait until the only delivery has had so many attempts."""
        until(lambda: self.all()[0].attempts == attempts and self.rests(), f"{attempts} attempts")
        return self.all()[0]

    def threads(self) -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each.name == "webhook"]

    def rests(self) -> bool:
        """Whether one thread waits, and there is no other."""
        return self.sender._idles and len(self.threads()) == 1  # noqa: SLF001

    def limits(self) -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each.name == "webhook-limit"]

    def allow(self, *hosts: str) -> None:
        """Allow these hosts only."""
        self.sender._requests._rules = ConnectRules(20.0, frozenset(hosts))  # noqa: SLF001

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.sender.wake()


@pytest.fixture
def sending(store: JobStore, receiving: Receiver) -> Iterator[Sending]:
    made = Sending(store, frozenset([receiving.host]))
    made.sender.start()
    yield made
    made.sender.close()
    assert made.threads() == []


# --- the schedule ---


@given(st.integers(1, len(DELAYS)), st.floats(0, 1), st.floats(0, 10 * DAY))
def test_pauses_grow_vary_and_heed_the_receiver(step: int, chance: float, retry_after: float) -> None:
    pause = pause_after(step, retry_after, chance)
    assert pause is not None
    varied = pause_after(step, 0.0, chance)
    assert varied is not None
    assert (1 - JITTER) * DELAYS[step - 1] <= varied <= (1 + JITTER) * DELAYS[step - 1]
    assert pause == max(varied, min(retry_after, LONGEST_RETRY_AFTER))
    assert step == 1 or varied > (pause_after(step - 1, 0.0, chance) or 0.0)


def test_there_are_ten_attempts_in_about_three_days() -> None:
    assert pause_after(len(DELAYS) + 1, 0.0, 0.5) is None
    least, most = (sum(pause_after(step + 1, 0.0, chance) or 0.0 for step in range(len(DELAYS))) for chance in (0, 1))
    assert 2.8 * DAY < least < most < 3.5 * DAY
    assert len(DELAYS) + 1 == 10


def test_a_receiver_that_stays_away_is_tried_for_three_days_and_then_given_up_visibly(
    sending: Sending, receiving: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "whisper_api")
    receiving.answer = lambda path: (500, {})
    sending.end_job("one", webhook_url=receiving.url())
    begun, times = sending.now, []
    for attempt in range(1, len(DELAYS) + 2):
        delivery = sending.tried(attempt)
        times.append(sending.now)
        if delivery.next_attempt_at is None:
            break
        # Nothing happens before its time.
        sending.later((delivery.next_attempt_at - sending.now) * 0.99)
        until(sending.rests, "the thread waits")
        assert sending.all()[0].attempts == attempt
        sending.later(delivery.next_attempt_at - sending.now)
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert len(pauses) == len(DELAYS)
    assert all(abs(pause - delay) <= JITTER * delay + 1 for pause, delay in zip(pauses, DELAYS, strict=True))
    assert 2.8 * DAY < times[-1] - begun < 3.5 * DAY
    (given_up,) = sending.settled("Failed")
    assert (given_up.attempts, given_up.last_status, given_up.last_error) == (10, 500, "the receiver answered 500")
    assert {told.id for told in receiving.told} == {given_up.delivery_id}
    assert len({told.headers["webhook-timestamp"] for told in receiving.told}) == 10
    assert sending.outcomes == ["retried"] * 9 + ["failed"]
    assert "given up" in caplog.text
    assert receiving.host not in caplog.text

    receiving.answer = lambda path: (200, {})
    sending.webhooks.resend("", given_up.delivery_id)
    (again,) = sending.settled("Delivered")
    assert (again.attempts, again.delivery_id, again.last_error) == (11, given_up.delivery_id, None)


def test_an_attempt_comes_by_itself_when_it_is_due(
    sending: Sending, receiving: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_sender, "DELAYS", (0.05, 0.1, 0.05))
    begun, at = sending.now, time.monotonic()
    sending.sender._clock = lambda: begun + time.monotonic() - at  # noqa: SLF001
    answers = iter([500, 503, 404, 204])
    receiving.answer = lambda path: (next(answers), {})
    sending.end_job("one", webhook_url=receiving.url())
    (delivery,) = sending.settled("Delivered")
    assert delivery.attempts == 4


def test_one_thread_waits_and_nothing_is_looked_up_while_nothing_is_due(
    sending: Sending, receiving: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(sending.rests, "it has looked once")
    looked = list[float]()
    due = sending.store.due_deliveries

    def noted(now: float, **rest: Any) -> list[Delivery]:
        looked.append(now)
        return due(now, **rest)

    monkeypatch.setattr(sending.store, "due_deliveries", noted)
    sending.end_job("none")
    sending.store.add(new_job("other", owner=""))
    sending.store.cancel("other", sending.now)
    assert sending.rests()
    assert (sending.all(), receiving.told, looked) == ([], [], [])
    receiving.answer = lambda path: (500, {})
    sending.end_job("one", webhook_url=receiving.url())
    sending.tried(1)
    count = len(looked)
    time.sleep(0.2)
    assert (sending.rests(), len(looked)) == (True, count)


def test_a_thread_sends_what_comes_next_and_ends_with_the_sender(store: JobStore, receiving: Receiver) -> None:
    sending = Sending(store, frozenset([receiving.host]))
    threads = list[threading.Thread]()
    body_of = sending.sender._body_of  # noqa: SLF001

    def noted(delivery: Delivery) -> bytes:
        threads.append(threading.current_thread())
        return body_of(delivery)

    sending.sender._body_of = noted  # noqa: SLF001
    sending.sender.start()
    for number in range(1, 6):
        until(sending.rests, "the thread waits")
        sending.end_job(str(number), webhook_url=receiving.url())
        until(lambda: {each.state for each in sending.all()} == {"Delivered"}, "it is delivered")
    assert len(set(threads)) == 1
    assert sending.threads() == threads[:1]
    sending.sender.close()
    assert sending.threads() == []


# --- what a receiver says ---


@pytest.mark.parametrize("status", [429, 503, 500])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_heeded_for_all_deliveries_of_the_owner_to_this_receiver(
    sending: Sending, receiving: Receiver, status: int, form: str
) -> None:
    value = "3600" if form == "seconds" else formatdate(sending.now + 3600, usegmt=True)
    receiving.answer = lambda path: (status, {"Retry-After": value} if path == "/hook" else {})
    sending.end_job("other", owner="somebody", webhook_url=receiving.url("/other"))
    sending.settled("Pending")
    sending.end_job("later", webhook_url=receiving.url("/later"))
    sending.settled("Pending", "Pending")
    sending.end_job("one", webhook_url=receiving.url())
    other, later, one = sending.settled("Pending", "Pending", "Pending")
    assert one.next_attempt_at == pytest.approx(sending.now + 3600, abs=1.5)
    assert later.next_attempt_at == pytest.approx(sending.now + 3600, abs=1.5)
    assert (other.next_attempt_at or 0) < sending.now + 6


def test_a_receiver_that_is_gone_disables_its_endpoint(sending: Sending, receiving: Receiver) -> None:
    receiving.answer = lambda path: (410, {})
    endpoint = sending.webhooks.create("", receiving.url(), EndpointChange())
    other = sending.webhooks.create("", receiving.url("/other"), EndpointChange(enabled=False))
    sending.end_job("one", webhook_url=receiving.url("/own"))
    sending.settled("Failed", "Failed")
    found = sending.webhooks.get("", endpoint.endpoint_id)
    assert not found.enabled
    assert "410" in (found.disabled_reason or "")
    assert sending.webhooks.get("", other.endpoint_id).disabled_reason is None
    sending.end_job("two")
    assert len(receiving.told) == len(sending.all()) == 2
    sending.webhooks.change("", endpoint.endpoint_id, EndpointChange(enabled=True))
    assert sending.webhooks.get("", endpoint.endpoint_id).disabled_reason is None


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(sending: Sending, receiving: Receiver, status: int) -> None:
    receiving.answer = lambda path: (status, {"Location": receiving.url("/elsewhere")})
    sending.end_job("one", webhook_url=receiving.url())
    delivery = sending.tried(1)
    assert "redirects are not followed" in (delivery.last_error or "")
    assert receiving.at("/elsewhere") == []


# --- addresses ---


def test_an_address_that_is_not_allowed_gets_nothing_and_looks_like_one_that_does_not_answer(
    store: JobStore, receiving: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = ConnectRules
    monkeypatch.setattr(
        webhook_requests, "ConnectRules", lambda seconds, hosts: rules(seconds, hosts, lookup_seconds=0.05)
    )
    sending = Sending(store, frozenset(["127.0.0.1:9"]))
    sending.sender.start()
    # Port 9 of this machine is allowed and closed; the receiver is open and not allowed.
    for number, url in enumerate((receiving.url(), "http://127.0.0.1:9/", "http://no.such.name.invalid/")):
        sending.end_job(str(number), webhook_url=url)
    deliveries = sending.settled("Pending", "Pending", "Pending")
    sending.sender.close()
    assert receiving.told == []
    assert len({(each.last_status, each.last_error) for each in deliveries}) == 1


# --- slow receivers ---


def test_slow_receivers_stop_no_other_and_get_few_requests_at_once(sending: Sending, receiving: Receiver) -> None:
    held = threading.Event()

    def answer(path: str) -> tuple[int, dict[str, str]]:
        assert held.wait(60)
        return 200, {}

    try:
        with receiver() as quick:
            receiving.answer = answer
            sending.allow(receiving.host, quick.host)
            for number in range(30):
                sending.end_job(f"slow-{number}", webhook_url=receiving.url())
            for number in range(5):
                sending.end_job(f"quick-{number}", webhook_url=quick.url())
            until(lambda: len(quick.told) == 5, "the quick receiver has all of its events")
            assert receiving.told == []
            assert len(sending.threads()) <= webhook_sender.THREADS
            held.set()
            sending.settled(*["Delivered"] * 35)
        assert receiving.most_at_once["/hook"] == webhook_sender.PER_TARGET
        assert len({told.id for told in receiving.told}) == len(receiving.told) == 30
    finally:
        held.set()


def test_a_receiver_that_never_answers_is_left_after_a_time(
    store: JobStore, receiving: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_requests, "ATTEMPT_SECONDS", 0.2)
    sending = Sending(store, frozenset([receiving.host]))
    sending.sender.start()
    held = threading.Event()
    receiving.answer = lambda path: (200, {}) if held.wait(60) else (500, {})
    try:
        sending.end_job("one", webhook_url=receiving.url())
        delivery = sending.tried(1)
        assert (delivery.state, delivery.last_status) == ("Pending", None)
        # The thread that has broken it off ends, and the next request is broken off, too.
        until(lambda: not sending.limits(), "the limit has ended")
        sending.later(DELAYS[0] * (1 + JITTER))
        assert sending.tried(2).last_status is None
    finally:
        held.set()
        sending.sender.close()


def test_a_thread_limits_all_requests_that_run(
    store: JobStore, receiving: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_requests, "ATTEMPT_SECONDS", 0.5)
    held = threading.Event()
    receiving.answer = lambda path: (200, {}) if held.wait(60) else (500, {})
    sending = Sending(store, frozenset([receiving.host]))
    sending.sender.start()
    try:
        for number in range(4):
            sending.end_job(f"slow-{number}", webhook_url=receiving.url())
            assert len(sending.limits()) <= 1
        sending.settled(*["Pending"] * 4)
        until(lambda: not sending.limits(), "the limit has ended")
    finally:
        held.set()
        sending.sender.close()


# --- connections ---


class Keeping:
    """A receiver that keeps connections open. ``connections`` has the paths of the requests of each connection."""

    def __init__(self, body: bytes = b"", hangs_up: bool = False) -> None:
        self.connections: list[list[str]] = []
        keeping = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                keeping.connections.append([])
                self.paths = keeping.connections[-1]

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.paths.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                # Without the header that announces it.
                self.close_connection = hangs_up

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.parametrize(
    ("receiving", "connections"),
    [
        ({}, [["/0", "/1", "/2"]]),
        ({"body": b"thank you"}, [["/0", "/1", "/2"]]),
        # Not read, so the connection cannot be used again.
        ({"body": b"x" * (webhook_requests.MOST_BODY_BYTES + 1)}, [["/0"], ["/1"], ["/2"]]),
        ({"hangs_up": True}, [["/0"], ["/1"], ["/2"]]),
    ],
    ids=["no body", "a short body", "a long body", "hangs up"],
)
def test_a_connection_is_used_again_where_the_receiver_keeps_it(
    store: JobStore, receiving: dict[str, Any], connections: list[list[str]]
) -> None:
    keeping = Keeping(**receiving)
    sending = Sending(store, frozenset([keeping.host]))
    sending.sender.start()
    for number in range(3):
        sending.end_job(str(number), webhook_url=f"http://{keeping.host}/{number}")
        sending.settled(*["Delivered"] * (number + 1))
    assert keeping.connections == connections
    assert [each.attempts for each in sending.all()] == [1, 1, 1]
    sending.sender.close()
    assert sending.sender._requests._kept == {}  # noqa: SLF001
    keeping.close()


def test_a_kept_connection_is_closed_after_a_while(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_requests, "ATTEMPT_SECONDS", 0.1)
    monkeypatch.setattr(webhook_requests, "KEEP_SECONDS", 0.0)
    keeping = Keeping()
    requests = webhook_requests.WebhookRequests(frozenset([keeping.host]), time.time)
    requests._rules = ConnectRules(20.0, frozenset([keeping.host]))  # noqa: SLF001
    requests.post(f"http://{keeping.host}/", b"{}", {})
    until(lambda: not requests._watched, "the thread has ended")  # noqa: SLF001
    assert requests._kept == {}  # noqa: SLF001
    keeping.close()


# --- storage, and the end of the process ---


def test_deliveries_that_have_ended_go_with_the_time_and_pending_ones_stay(
    sending: Sending, receiving: Receiver, tmp_path: Path
) -> None:
    receiving.answer = lambda path: (500 if path == "/bad" else 200, {})
    for path in ("/good", "/bad"):
        sending.end_job(path, webhook_url=receiving.url(path))
    sending.settled("Delivered", "Pending")
    retention = Retention(sending.store, tmp_path / "uploads", retention_seconds=2 * DAY, grace_seconds=60.0)
    assert retention.sweep(sending.now + 1.9 * DAY).deliveries == 0
    assert retention.sweep(sending.now + 2.1 * DAY).deliveries == 1
    # The event of a job that was removed is still sent.
    assert sending.store.get("/bad") is None
    receiving.answer = lambda path: (200, {})
    sending.later(DAY)
    (delivery,) = sending.settled("Delivered")
    assert (delivery.job_id, delivery.url) == ("/bad", None)


def test_a_full_disk_delays_the_outcome_and_makes_no_second_request(
    sending: Sending, receiving: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_sender, "RETRY_SECONDS", 0.05)
    note, failures = sending.store.note_attempt, iter(range(3))

    def full(*arguments: Any, **named: Any) -> None:
        if next(failures, None) is not None:
            raise StorageFull("No space is left on the disk")
        note(*arguments, **named)

    monkeypatch.setattr(sending.store, "note_attempt", full)
    sending.end_job("one", webhook_url=receiving.url())
    sending.settled("Delivered")
    assert len(receiving.told) == 1


@pytest.mark.parametrize("method", ["note_attempt", "due_deliveries"])
def test_an_unexpected_error_costs_no_thread(
    method: str,
    sending: Sending,
    receiving: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(webhook_sender, "RETRY_SECONDS", 0.01)
    real, failures = getattr(sending.store, method), iter(range(webhook_sender.THREADS + 1))

    def fail(*arguments: Any, **named: Any) -> Any:
        if next(failures, None) is not None:
            raise ZeroDivisionError
        return real(*arguments, **named)

    monkeypatch.setattr(sending.store, method, fail)
    sending.end_job("one", webhook_url=receiving.url())
    sending.settled("Delivered")
    assert sum(record.levelname == "ERROR" for record in caplog.records) == webhook_sender.THREADS + 1
    assert len({told.id for told in receiving.told}) == 1


def test_a_fault_of_the_server_counts_as_an_attempt(
    sending: Sending, receiving: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*ignored: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("whisper_api.jobs.webhook_requests.rendered", fail)
    sending.end_job("one", webhook_url=receiving.url(), webhook_include_result=True)
    delivery = sending.tried(1)
    assert "its log has the reason" in (delivery.last_error or "")
    assert receiving.told == []


def test_what_a_stop_interrupts_is_sent_by_the_next_process(tmp_path: Path) -> None:
    held = threading.Event()
    settings: dict[str, Any] = {"enable_webhooks": True}

    def answer(path: str) -> tuple[int, dict[str, str]]:
        return (200, {}) if held.wait(60) else (500, {})

    try:
        with receiver(answer) as receiving:
            settings["webhook_private_hosts"] = receiving.host
            service = new_service(tmp_path, FakeExecutor(), **settings)
            service.start()
            job_id = submit(service, webhook_url=receiving.url())
            until(lambda: receiving.most_at_once["/hook"] == 1, "the attempt has begun")
            begun = time.monotonic()
            service.close()
            # The receiver holds its answer for 60 seconds.
            assert time.monotonic() - begun < 50
            held.set()
            again = new_service(tmp_path, FakeExecutor(), **settings)
            again.start()
            until(lambda: not again.store.pending_deliveries(), "it is delivered")
            ids = {told.id for told in receiving.told}
            assert len(ids) == 1
            (delivery,) = again.webhooks.deliveries(None, DeliveryFilter(job_id=job_id))[0]
            assert (delivery.state, delivery.delivery_id) == ("Delivered", ids.pop())
            again.close()
    finally:
        held.set()
