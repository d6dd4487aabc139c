"""Keys: making, verifying and revoking them."""

from __future__ import annotations

import base64
import re
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from store.test_jobs import new_job

from whisper_api.access.keys import KeyRing
from whisper_api.errors import InvalidOption, KeyExpired
from whisper_api.key_values import KeyChange
from whisper_api.store.jobs import JobStore


@pytest.fixture
def ring(store: JobStore) -> KeyRing:
    return KeyRing(store)


def test_a_key_opens(ring: KeyRing) -> None:
    assert not ring.any()
    key, token = ring.create("laptop", "admin")
    assert ring.verify(token) == key
    assert (key.name, key.role, key.revoked_at) == ("laptop", "admin", None)
    assert [each.key_id for each in ring.list()] == [key.key_id]
    assert ring.any()


def test_a_token_has_256_random_bits(ring: KeyRing) -> None:
    numbers = []
    for number in range(64):
        _, token = ring.create(f"key-{number}")
        match = re.fullmatch(r"wk_([0-9a-f]{8})_([A-Za-z0-9_-]{43})", token)
        assert match is not None
        secret = base64.urlsafe_b64decode(f"{match[2]}=")
        assert len(secret) == 32
        numbers.append(int.from_bytes(secret, "big"))
    # The chance that 64 coins all fall alike is 1 in 2**63.
    assert all(len({number >> bit & 1 for number in numbers}) == 2 for bit in range(256))


def test_the_secret_is_not_stored(ring: KeyRing, store: JobStore, tmp_path: Path) -> None:
    _, token = ring.create("laptop")
    secret = token[12:]
    store.database.compact()
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"laptop" in kept
    assert secret.encode() not in kept
    assert base64.urlsafe_b64decode(f"{secret}=") not in kept


def test_a_key_is_its_own_secret_and_no_others(ring: KeyRing) -> None:
    first, one = ring.create("first")
    second, two = ring.create("second")
    assert ring.verify(one) == first
    assert ring.verify(two) == second
    assert ring.verify(one[:12] + two[12:]) is None
    assert ring.verify(two[:12] + one[12:]) is None


@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=60, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_only_the_whole_token_is_accepted(ring: KeyRing, data: st.DataObject) -> None:
    [key] = ring.list() or [ring.create("laptop")[0]]
    secret = st.text("AZaz09_-", min_size=43, max_size=43)
    key_id = st.sampled_from([key.key_id, "00000000"])
    guess = data.draw(st.text() | st.builds("wk_{}_{}".format, key_id, secret))
    assert ring.verify(guess) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token[:-1],
        lambda token: token + "A",
        lambda token: f" {token}",
        lambda token: f"{token}\n",
        lambda token: token.upper(),
        lambda token: token.removeprefix("wk_"),
        lambda token: token[:12],
        lambda token: "",
    ],
    ids=["shorter", "longer", "space", "line end", "upper case", "no prefix", "no secret", "empty"],
)
def test_a_token_that_is_not_quite_right_does_not_open(ring: KeyRing, change: Any) -> None:
    _, token = ring.create("laptop")
    assert ring.verify(token) is not None
    assert ring.verify(change(token)) is None


def test_a_revoked_key_does_not_open_and_frees_its_name(ring: KeyRing, tmp_path: Path) -> None:
    key, token = ring.create("laptop")
    _, other = ring.create("desk")
    assert ring.recheck(key) == key
    # Another process revokes the key, as the command does while the server runs.
    store = JobStore(tmp_path / "jobs.db")
    revoked = KeyRing(store).revoke("laptop")
    store.close()
    assert revoked.key_id == key.key_id
    assert revoked.revoked_at is not None
    assert ring.verify(token) is None
    assert ring.verify(other) is not None
    again, new = ring.create("laptop")
    assert again.key_id != key.key_id
    assert ring.verify(new) == again
    assert ring.recheck(again) == again
    assert ring.recheck(key) is None
    assert ring.verify(token) is None
    assert [key.name for key in ring.list()] == ["laptop", "desk", "laptop"]
    ring.revoke("desk")
    ring.revoke(again.key_id)
    assert not ring.any()


@pytest.mark.parametrize("end", ["revoked here", "revoked elsewhere", "rotated", "changed", "a job is added"])
def test_a_key_that_was_read_is_verified_at_once_until_anything_changes(
    ring: KeyRing, store: JobStore, tmp_path: Path, end: str
) -> None:
    key, token = ring.create("laptop")
    wrong = f"{token[:-4]}{'AAAA' if token[-4:] != 'AAAA' else 'BBBB'}"
    assert ring.verify_at_once(token) == (False, None)
    assert ring.verify_at_once("wk_") == (False, None)
    assert ring.verify(token) == key
    for _ in range(3):
        assert ring.verify_at_once(token) == (True, key)
        assert ring.verify_at_once(wrong) == (True, None)
    other = JobStore(tmp_path / "jobs.db")
    match end:
        case "revoked here":
            ring.revoke("laptop")
        case "revoked elsewhere":
            # As `whisper-api keys revoke` does beside a running server.
            KeyRing(other).revoke("laptop")
        case "rotated":
            ring.rotate(key.key_id, 0.0)
        case "changed":
            ring.change(key.key_id, KeyChange(name="desk"))
        case _:
            other.add(new_job("one"))
    other.close()
    wanted = {"rotated": "expired", "changed": "desk", "a job is added": "laptop"}.get(end)

    def known() -> str | None:
        """The name of the key; "expired" for a secret that was replaced."""
        try:
            at_once, found = ring.verify_at_once(token)
            if not at_once:
                found = ring.verify(token)
        except KeyExpired:
            return "expired"
        return None if found is None else found.name

    assert [known(), known()] == [wanted, wanted]


def test_a_key_that_was_read_expires_at_its_time(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    _, token = ring.create("guest", expires_at=datetime.fromtimestamp(now + 60, timezone.utc))
    assert ring.verify(token) is not None
    assert ring.verify_at_once(token)[1] is not None
    monkeypatch.setattr("time.time", lambda: now + 61)
    with pytest.raises(KeyExpired):
        ring.verify_at_once(token)


def test_a_use_that_is_verified_at_once_counts(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    key, token = ring.create("laptop")
    ring.verify(token)
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 100)
    ring.verify_at_once(token)
    assert ring.get(key.key_id).last_used_at == now + 100


def test_a_name_is_one_keys(ring: KeyRing) -> None:
    ring.create("laptop")
    with pytest.raises(InvalidOption, match="already"):
        ring.create("laptop")
    assert len(ring.list()) == 1


@pytest.mark.parametrize("name", ["", " ", " laptop", "laptop ", "a\nb", "a\x1b[31mb", "\u202eb", "x" * 65])
def test_a_name_that_would_confuse_is_refused(ring: KeyRing, name: str) -> None:
    with pytest.raises(InvalidOption, match="printable"):
        ring.create(name)
    assert ring.list() == []


@pytest.mark.parametrize("name", ["x", "x" * 64, "Büro 2, Étage 3", "'; DROP TABLE keys; --"])
def test_a_name_may_be_any_text(ring: KeyRing, name: str) -> None:
    key, _ = ring.create(name)
    assert ring.revoke(name).key_id == key.key_id


def test_a_role_is_one_of_two(ring: KeyRing) -> None:
    role: Any = "root"
    with pytest.raises(InvalidOption, match="user, admin"):
        ring.create("laptop", role)


def test_an_ambiguous_or_unknown_key_is_not_revoked(ring: KeyRing) -> None:
    with pytest.raises(InvalidOption, match="none"):
        ring.revoke("laptop")
    key, token = ring.create("laptop")
    with pytest.raises(InvalidOption, match="'laptop'"):
        ring.revoke("desk")
    namesake, _ = ring.create(key.key_id)
    with pytest.raises(InvalidOption, match="id of another"):
        ring.revoke(key.key_id)
    assert ring.verify(token) == key
    ring.revoke(namesake.key_id)
    ring.revoke(key.key_id)
    with pytest.raises(InvalidOption, match="no valid key"):
        ring.revoke(key.key_id)
