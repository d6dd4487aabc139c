"""Expiry, rotation, scopes and last use of keys, and what a key may hand out."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any, get_args

import pytest

from whisper_api.access.key_rules import SCOPES_OF_ROLES, duration, moment
from whisper_api.access.keys import KeyRing, access_key
from whisper_api.errors import InvalidOption, KeyExpired, KeyNotFound, LastAdminKey, ScopeMissing
from whisper_api.key_values import KeyChange, NewKey, Role, Scope
from whisper_api.store.jobs import JobStore

NOW = datetime(2026, 5, 1, 12, tzinfo=timezone.utc)


@pytest.fixture
def ring(store: JobStore) -> KeyRing:
    return KeyRing(store)


def soon(seconds: float = 3600.0) -> datetime:
    return datetime.now(timezone.utc) + timedelta(seconds=seconds)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock."""
    real, moved = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + moved[0])

    def move(seconds: float) -> None:
        moved[0] += seconds

    return move


# --- expiry ---


def test_a_key_expires_at_its_moment_and_frees_its_name(ring: KeyRing, later: Callable[[float], None]) -> None:
    key, token = ring.create("app", expires_at=soon(3600))
    later(3590)
    assert ring.verify(token) is not None
    later(20)
    with pytest.raises(KeyExpired, match="expired on 20"):
        ring.verify(token)
    with pytest.raises(KeyExpired):
        ring.recheck(key)
    assert not ring.any()
    assert access_key(ring.get(key.key_id)).state == "expired"
    with pytest.raises(KeyNotFound, match="is expired"):
        ring.change(key.key_id, KeyChange(expires_at=None))
    again, _ = ring.create("app")
    assert again.key_id != key.key_id
    shown = access_key(ring.get(key.key_id))
    assert (shown.state, shown.revoked_at) == ("expired", None)


def test_a_key_that_was_revoked_before_its_expiry_stays_revoked(ring: KeyRing, later: Callable[[float], None]) -> None:
    key, token = ring.create("app", expires_at=soon(3600))
    ring.revoke("app")
    later(7200)
    assert ring.verify(token) is None
    assert access_key(ring.get(key.key_id)).state == "revoked"


def test_only_the_secret_opens_the_message_about_the_expiry(ring: KeyRing, later: Callable[[float], None]) -> None:
    _, token = ring.create("app", expires_at=soon(1))
    later(2)
    assert ring.verify(token[:12] + "A" * 43) is None


# --- rotation ---


def test_old_secrets_live_for_their_grace(ring: KeyRing, later: Callable[[float], None]) -> None:
    key, first = ring.create("app")
    _, second = ring.rotate(key.key_id, 3600)
    later(1800)
    _, third = ring.rotate(key.key_id, 86400)
    for token in (first, second, third):
        verified = ring.verify(token)
        assert verified is not None
        assert verified.key_id == key.key_id
    # A later rotation does not prolong the life of the first secret.
    later(1810)
    with pytest.raises(KeyExpired, match="replaced"):
        ring.verify(first)
    assert ring.verify(second) is not None
    # A rotation because of a stolen secret ends all at once.
    _, last = ring.rotate(key.key_id, 0)
    for token in (second, third):
        with pytest.raises(KeyExpired, match="replaced"):
            ring.verify(token)
    assert ring.verify(last) is not None
    assert access_key(ring.get(key.key_id)).old_secret_until is None


@pytest.mark.parametrize("grace", [-1.0, 31 * 86400.0, float("nan"), float("inf")])
def test_a_grace_has_bounds(ring: KeyRing, grace: float) -> None:
    key, token = ring.create("app")
    with pytest.raises(InvalidOption, match="grace_seconds"):
        ring.rotate(key.key_id, grace)
    assert ring.verify(token) is not None


# --- values ---


def test_every_scope_and_role_is_possible_together_or_refused(ring: KeyRing) -> None:
    for role in get_args(Role):
        for scope in get_args(Scope):
            name = f"{role} {scope}"
            if scope in SCOPES_OF_ROLES[role]:
                assert ring.create(name, role, scopes=(scope, scope))[0].scopes == (scope,)
            else:
                with pytest.raises(InvalidOption, match="scope"):
                    ring.create(name, role, scopes=(scope,))
    key = ring.create("app", scopes=("correct",))[0]
    with pytest.raises(InvalidOption, match="scope"):
        ring.change(key.key_id, KeyChange(role="operator"))
    assert ring.get(key.key_id) == key


@pytest.mark.parametrize("change", [{"name": " x"}, {"rate": "fast"}, {"quota": "much"}, {"expires_at": NOW}])
def test_a_change_that_cannot_be_changes_nothing(ring: KeyRing, change: dict[str, Any]) -> None:
    key = ring.create("app", rate="60/minute")[0]
    with pytest.raises(InvalidOption):
        ring.change(key.key_id, KeyChange(**change))
    assert ring.get(key.key_id) == key


def test_a_name_that_another_key_has_cannot_be_taken_by_a_change(ring: KeyRing) -> None:
    ring.create("app")
    other = ring.create("web")[0]
    with pytest.raises(InvalidOption, match="already"):
        ring.change(other.key_id, KeyChange(name="app"))
    assert ring.change(other.key_id, KeyChange(name="web", quota="5 jobs/day")).quota == "5 jobs/day"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90d", NOW + timedelta(days=90)),
        ("12h", NOW + timedelta(hours=12)),
        ("2 w", NOW + timedelta(weeks=2)),
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=timezone.utc)),
        ("2027-01-31T10:00:00Z", datetime(2027, 1, 31, 10, tzinfo=timezone.utc)),
        ("2027-01-31T10:00:00+02:00", datetime(2027, 1, 31, 8, tzinfo=timezone.utc)),
        ("2027-01-31 10:00", datetime(2027, 1, 31, 10, tzinfo=timezone.utc)),
        ("never", None),
    ],
)
def test_an_expiry_is_a_duration_or_a_time(text: str, expected: datetime | None) -> None:
    assert moment(text, NOW) == expected


@pytest.mark.parametrize("text", ["", "soon", "90", "90 days", "2027-13-01", "tomorrow", "-5d"])
def test_any_other_expiry_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        moment(text, NOW)
    with pytest.raises(ValueError, match="expected"):
        duration(text)


# --- the rules of requests ---


def test_the_last_key_of_an_administrator_is_not_lost_by_a_request(ring: KeyRing) -> None:
    root, token = ring.create("root", "admin")
    ring.create("app")
    # Neither of these can manage keys for ever.
    passing = ring.create("passing", "admin", expires_at=soon())[0]
    ring.create("reader", "admin", scopes=("read",))
    for change in (
        KeyChange(role="user"),
        KeyChange(scopes=("read",)),
        KeyChange(expires_at=soon()),
        KeyChange(role="operator"),
    ):
        with pytest.raises(LastAdminKey):
            ring.change(root.key_id, change, by=root)
    with pytest.raises(LastAdminKey):
        ring.end(root.key_id, by=passing)
    assert ring.verify(token) == root
    # The other changes are possible, and a second key makes all of them possible.
    assert ring.change(root.key_id, KeyChange(scopes=("admin", "read")), by=root).scopes == ("admin", "read")
    second = ring.create("second", "admin")[0]
    assert ring.end(root.key_id, by=second).revoked_at is not None
    with pytest.raises(LastAdminKey):
        ring.end(second.key_id, by=second)
    # The command line can do everything.
    ring.revoke("second")


def test_the_last_administrators_key_is_not_rotated_without_grace(ring: KeyRing) -> None:
    root, token = ring.create("root", "admin")
    with pytest.raises(LastAdminKey, match="grace_seconds"):
        ring.rotate(root.key_id, 0, by=root)
    ring.rotate(root.key_id, 60, by=root)
    assert ring.verify(token) is not None
    ring.create("second", "admin")
    ring.rotate(root.key_id, 0, by=root)
    with pytest.raises(KeyExpired):
        ring.verify(token)


def test_a_key_with_scopes_hands_out_no_more_than_it_has(ring: KeyRing) -> None:
    root = ring.create("root", "admin")[0]
    app = ring.create("app")[0]
    by = ring.create("manager", "admin", scopes=("admin", "read"))[0]
    for scopes in ((), ("delete",), ("read", "delete")):
        with pytest.raises(ScopeMissing):
            ring.add(NewKey(name="new", scopes=scopes), by=by)
    made = ring.add(NewKey(name="new", scopes=("read",)), by=by)[0]
    for key in (root, app):
        with pytest.raises(ScopeMissing):
            ring.rotate(key.key_id, by=by)
        with pytest.raises(ScopeMissing):
            ring.change(key.key_id, KeyChange(scopes=("read",)), by=by)
    for change in (KeyChange(scopes=()), KeyChange(scopes=("delete",))):
        with pytest.raises(ScopeMissing):
            ring.change(made.key_id, change, by=by)
    ring.rotate(made.key_id, by=by)
    assert ring.add(NewKey(name="other"), by=root)[0].scopes == ()


# --- last use ---


def test_the_last_use_is_kept_in_memory_and_written_together(ring: KeyRing, store: JobStore) -> None:
    key, token = ring.create("app")
    other, _ = ring.create("other")
    assert ring.get(key.key_id).last_used_at is None
    writes: list[dict[str, float]] = []
    note, store.note_uses = store.note_uses, lambda uses: writes.append(dict(uses)) or note(uses)  # type: ignore[func-returns-value, method-assign]
    before = time.time()
    for _ in range(100):
        ring.verify(token)
    assert writes == []
    used = ring.get(key.key_id).last_used_at
    assert used is not None
    assert before <= used <= time.time()
    ring.write_uses()
    ring.write_uses()
    assert writes == [{key.key_id: used}]
    assert [each.last_used_at for each in KeyRing(store).list()] == [used, None]
    assert KeyRing(store).get(other.key_id).last_used_at is None


def test_a_refused_token_is_no_use(ring: KeyRing, later: Callable[[float], None]) -> None:
    key, token = ring.create("app", expires_at=soon(10))
    assert ring.verify(token[:-1] + ("A" if token[-1] != "A" else "B")) is None
    later(20)
    with pytest.raises(KeyExpired):
        ring.verify(token)
    assert ring.get(key.key_id).last_used_at is None
