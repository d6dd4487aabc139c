"""Signatures of webhooks: they are those of the library of Standard Webhooks, and only a genuine request is taken."""

from __future__ import annotations

import base64
import time
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from whisper_api import InvalidOption, InvalidWebhook, verify_webhook
from whisper_api.client import verify_webhook as from_client
from whisper_api.webhooks import SECRET_BYTES, TOLERANCE_SECONDS, new_secret, signature

BODY = b'{"type":"transcription.failed","timestamp":"2030-01-01T00:00:00.000Z","data":{"job_id":"a","status":"Failed"}}'


def request(*secrets: str, at: float | None = None, body: bytes = BODY) -> dict[str, str]:
    timestamp = int(time.time() if at is None else at)
    return {
        "Webhook-Id": "msg_1",
        "WEBHOOK-TIMESTAMP": str(timestamp),
        "webhook-signature": signature(secrets, "msg_1", timestamp, body),
    }


@given(st.binary(min_size=24, max_size=64), st.text("abcdef0123456789_-", min_size=1), st.text())
def test_a_signature_is_that_of_the_library(key: bytes, delivery_id: str, text: str) -> None:
    secret = f"whsec_{base64.b64encode(key).decode()}"
    at = datetime.now(tz=timezone.utc)
    body = text.encode("utf-8", "replace")
    theirs = Webhook(secret).sign(delivery_id, at, body.decode())
    assert signature([secret], delivery_id, int(at.timestamp()), body) == theirs


def test_each_valid_secret_verifies_and_no_other() -> None:
    old, new, other = (new_secret() for _ in range(3))
    headers = request(new, old)
    for secret in (old, new):
        Webhook(secret).verify(BODY, headers)
        event = verify_webhook(secret, headers, BODY)
        assert (event.type, event.data.job_id, event.data.status) == ("transcription.failed", "a", "Failed")
    with pytest.raises(InvalidWebhook, match="signature"):
        verify_webhook(other, headers, BODY)
    assert verify_webhook(new, headers, BODY.decode()) == event
    assert from_client is verify_webhook


def test_a_changed_or_incomplete_request_is_refused() -> None:
    secret = new_secret()
    headers = request(secret)
    wrong = [
        (headers, BODY.replace(b"Failed", b"failed")),
        ({**headers, "Webhook-Id": "msg_2"}, BODY),
        ({**headers, "WEBHOOK-TIMESTAMP": str(int(time.time()) + 1)}, BODY),
        ({**headers, "webhook-signature": headers["webhook-signature"].replace("v1,", "v2,")}, BODY),
        ({**headers, "webhook-signature": "v1,"}, BODY),
        ({**headers, "webhook-signature": "v1,é"}, BODY),
        ({name: value for name, value in headers.items() if name != "Webhook-Id"}, BODY),
        ({}, BODY),
    ]
    for changed, body in wrong:
        with pytest.raises(InvalidWebhook):
            verify_webhook(secret, changed, body)
    verify_webhook(secret, headers, BODY)


@pytest.mark.parametrize("sign", [-1, 1])
def test_old_and_future_requests_are_refused_after_five_minutes(sign: int) -> None:
    secret = new_secret()
    assert TOLERANCE_SECONDS == 300
    inside = request(secret, at=time.time() + sign * (TOLERANCE_SECONDS - 5))
    outside = request(secret, at=time.time() + sign * (TOLERANCE_SECONDS + 5))
    verify_webhook(secret, inside, BODY)
    with pytest.raises(InvalidWebhook, match="too old or too new"):
        verify_webhook(secret, outside, BODY)
    verify_webhook(secret, outside, BODY, tolerance=TOLERANCE_SECONDS + 10)


def test_a_body_that_is_no_event_and_a_malformed_secret_are_named() -> None:
    secret = new_secret()
    for body in (b"[]", b"\xff", b""):
        with pytest.raises(InvalidWebhook, match="no event"):
            verify_webhook(secret, request(secret, body=body), body)
    for malformed in ("", "whsec_", "whsec_ÿ", "whsec_a"):
        with pytest.raises(InvalidOption, match=r"secret: expected whsec_") as raised:
            verify_webhook(malformed, request(secret), BODY)
        assert "ÿ" not in str(raised.value)


def test_events_of_later_versions_are_read() -> None:
    secret = new_secret()
    body = b'{"type":"new.event","timestamp":"2030-01-01T00:00:00Z","data":{"new":1},"more":[]}'
    assert verify_webhook(secret, request(secret, body=body), body).type == "new.event"


def test_secrets_are_long_and_random() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(len(base64.b64decode(secret.removeprefix("whsec_"))) == SECRET_BYTES >= 24 for secret in made)
