"""Webhooks as values: events, endpoints, deliveries and signatures, for the server and for those who receive them.

A delivery is a POST as Standard Webhooks describes it: the header ``webhook-id`` stays the same over all attempts,
``webhook-timestamp`` is the time of the attempt, and ``webhook-signature`` has a signature for each valid secret.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets as random_secrets
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from whisper_api.errors import InvalidOption, InvalidWebhook
from whisper_api.job_values import JobResult, JobState
from whisper_api.records import Record

WebhookEventType = Literal["transcription.completed", "transcription.failed", "transcription.canceled"]
DeliveryState = Literal["Pending", "Delivered", "Failed"]

EVENTS: tuple[WebhookEventType, ...] = get_args(WebhookEventType)
TEST_EVENT = "webhook.test"
TOLERANCE_SECONDS = 300
SECRET_PREFIX = "whsec_"
SECRET_BYTES = 32
# Version 1 is HMAC-SHA256, the only version for secrets that both sides know.
VERSION = "v1"


class WebhookData(Record, frozen=True, kw_only=True):
    """What an event is about. Members that do not apply are absent.

    Attributes:
        job_id: id of the job.
        status: state of the job: Completed, Failed or Canceled.
        status_url: path of the job's status on the server.
        result_url: path of the job's result on the server, for a Completed job.
        result: the result, when the endpoint or the job asks for it.
        result_omitted: why the result is absent, although it was asked for: ``too_large``, or ``gone`` when it was
            removed before this attempt.
        endpoint_id: id of the endpoint, in a test event.
    """

    job_id: str | UnsetType = UNSET
    status: JobState | UnsetType = UNSET
    status_url: str | UnsetType = UNSET
    result_url: str | UnsetType = UNSET
    result: JobResult | UnsetType = UNSET
    result_omitted: Literal["too_large", "gone"] | UnsetType = UNSET
    endpoint_id: str | UnsetType = UNSET


class WebhookEvent(Record, frozen=True, kw_only=True):
    """The body of a delivery.

    Attributes:
        type: ``transcription.completed``, ``transcription.failed`` or ``transcription.canceled``; ``webhook.test`` in a
            test. Ignore other types, which later versions may send.
        timestamp: when the event happened (RFC 3339, UTC); the same in all attempts.
        data: what the event is about.
    """

    type: str
    timestamp: str
    data: WebhookData


class WebhookEndpoint(Record, frozen=True, kw_only=True):
    """An address that gets the events of a key's jobs.

    Attributes:
        endpoint_id: a UUID.
        url: where deliveries are sent.
        events: the types of events that are sent.
        include_result: whether ``transcription.completed`` carries the result.
        description: a note for people.
        enabled: whether events are sent.
        disabled_reason: why the server has disabled the endpoint; None otherwise.
        created_at, updated_at: RFC 3339, UTC.
    """

    endpoint_id: str
    url: str
    events: tuple[WebhookEventType, ...]
    include_result: bool
    description: str
    enabled: bool
    disabled_reason: str | None
    created_at: str
    updated_at: str


class EndpointList(msgspec.Struct, frozen=True, kw_only=True):
    """The endpoints of a caller.

    Attributes:
        webhooks: the oldest first.
    """

    webhooks: tuple[WebhookEndpoint, ...]


class WebhookSecret(Record, frozen=True, kw_only=True):
    """The secret that signs deliveries.

    Attributes:
        secret: ``whsec_`` and the secret in base64.
        previous_until: until when the secret before this one signs, too (RFC 3339, UTC); None when it does not.
    """

    secret: str
    previous_until: str | None = None


class WebhookDelivery(Record, frozen=True, kw_only=True):
    """An event on its way to one address.

    Attributes:
        delivery_id: the header ``webhook-id`` of every attempt.
        type: type of the event.
        job_id: the job of the event; None for a test.
        endpoint_id: the endpoint that gets the event; None for the ``webhook_url`` of a job.
        url: the ``webhook_url`` of the job; None for an endpoint, and once the texts of the job were deleted.
        state: ``Pending`` until an attempt succeeds, or the last one fails.
        attempts: attempts so far.
        last_status: HTTP status of the last response; None without one.
        last_error: why the last attempt failed.
        created_at: when the event happened (RFC 3339, UTC, like the other times).
        last_attempt_at: time of the last attempt.
        next_attempt_at: time of the next attempt; None when there is none.
        ended_at: when the delivery succeeded, or was given up.
    """

    delivery_id: str
    type: str
    job_id: str | None
    endpoint_id: str | None
    url: str | None
    state: DeliveryState
    attempts: Annotated[int, Meta(ge=0)]
    last_status: int | None
    last_error: str | None
    created_at: str
    last_attempt_at: str | None
    next_attempt_at: str | None
    ended_at: str | None


class DeliveryPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of deliveries.

    Attributes:
        deliveries: the newest first.
        next: the cursor ``after`` for the next page; None on the last page.
    """

    deliveries: tuple[WebhookDelivery, ...]
    next: str | None


def new_secret() -> str:
    """A new random secret."""
    return SECRET_PREFIX + base64.b64encode(random_secrets.token_bytes(SECRET_BYTES)).decode()


def signature(secrets: Sequence[str], delivery_id: str, timestamp: int, body: bytes) -> str:
    """The header ``webhook-signature``.

    Args:
        secrets: the valid secrets; each gives a signature.
        delivery_id: the header ``webhook-id``.
        timestamp: the header ``webhook-timestamp``; seconds since 1970.
        body: the body of the request.
    """
    return " ".join(f"{VERSION},{_signed(secret, delivery_id, str(timestamp), body)}" for secret in secrets)


def verify_webhook(
    secret: str, headers: Mapping[str, str], body: bytes | str, *, tolerance: float = TOLERANCE_SECONDS
) -> WebhookEvent:
    """Check that a request is a delivery of the server that knows the secret, and read it.

    Args:
        secret: the secret of the endpoint, or of the key, that begins with ``whsec_``.
        headers: headers of the request; their names may have any case.
        body: the body as it was received. JSON that was parsed and written again has another signature.
        tolerance: most seconds between the time of the attempt and now, so that nobody can send an old request again.

    Returns:
        The event.

    Raises:
        InvalidWebhook: a header is missing, the signature is wrong, the request is too old or too new, or the body is
            no event.
        InvalidOption: the secret is malformed.
    """
    data = body.encode() if isinstance(body, str) else bytes(body)
    found = {name.lower(): value for name, value in headers.items()}
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    delivery_id, timestamp, signatures = (found.get(name, "") for name in names)
    if not (delivery_id and timestamp and signatures):
        raise InvalidWebhook(f"the request has not the headers {', '.join(names)}")
    expected = _signed(secret, delivery_id, timestamp, data).encode()
    given = [part.partition(",")[2].encode() for part in signatures.split() if part.startswith(f"{VERSION},")]
    if not any(hmac.compare_digest(each, expected) for each in given):
        raise InvalidWebhook("no signature of the request is that of this secret")
    if not timestamp.isdecimal() or abs(time.time() - int(timestamp)) > tolerance:
        raise InvalidWebhook("the request is too old or too new: somebody sends it again, or a clock is wrong")
    try:
        return msgspec.json.decode(data, type=WebhookEvent)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InvalidWebhook(f"the body is no event: {error}") from error


def _signed(secret: str, delivery_id: str, timestamp: str, body: bytes) -> str:
    message = f"{delivery_id}.{timestamp}.".encode() + body
    return base64.b64encode(hmac.digest(_key(secret), message, "sha256")).decode()


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.strip().removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        # The secret itself must not get into a log.
        raise InvalidOption("secret", f"expected {SECRET_PREFIX} and base64, as the server shows it")
    return key
