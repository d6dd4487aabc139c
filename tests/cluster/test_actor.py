"""What an engine refuses, and how its messages travel; without Ray."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_api.cluster.actor import EngineActor, EngineStatus, identity, together
from whisper_api.cluster.messages import DONE, PARTIAL, PROGRESS, Message
from whisper_api.cluster.placement import difference

OWN = identity()


@pytest.mark.parametrize(
    ("front", "said"),
    [
        (
            {**OWN, "version": "99.0"},
            [f"This machine has whisper-api {OWN['version']}, the front has whisper-api 99.0"],
        ),
        ({**OWN, "python": "3.99"}, [f"This machine has Python {OWN['python']}, the front has Python 3.99"]),
        ({"version": "99.0", "python": "3.99"}, ["whisper-api 99.0 and Python 3.99"]),
        ({}, [OWN["version"], OWN["python"]]),
    ],
)
def test_an_engine_with_another_version_refuses_in_a_sentence(front: dict[str, str], said: list[str]) -> None:
    # What a front of another version has pickled, nobody unpickles.
    actor = EngineActor("a", front, b"no pickle", "no.such:Executor", False)
    status = actor.status()
    assert all(each in status["refusal"] for each in said)
    assert status["refusal"].endswith("install the same on both")
    assert not status["ready"]
    assert actor.call("1", "check", b"")[0] is False


def test_an_engine_with_other_model_files_is_refused_in_a_sentence() -> None:
    revisions = {"base": "a" * 40}

    def status(**found: str) -> EngineStatus:
        return EngineStatus(version="1", revisions=found)

    assert difference(status(base="a" * 40, ecapa="c" * 40), "1", revisions) == ""
    assert difference(status(), "1", revisions) == ""
    said = difference(status(base="b" * 40), "1", revisions)
    assert "b" * 20 in said
    assert "a" * 20 in said
    assert "`whisper-api models pull base`" in said
    # The first engine that has a model decides for those after it.
    assert "ecapa" in difference(status(ecapa="d" * 40), "1", revisions)
    assert "whisper-api 1, the front has 2" in difference(status(), "2", revisions)


KINDS = st.sampled_from([PROGRESS, PARTIAL])


@given(st.lists(st.tuples(KINDS, st.booleans()), max_size=30), st.booleans())
def test_messages_travel_in_groups_whole_and_in_order(events: list[tuple[str, bool]], pause: bool) -> None:
    """Only a pause before a message ends a group."""
    messages: list[Message] = [(kind, str(number).encode()) for number, (kind, _) in enumerate(events)]
    messages.append((DONE, b"end"))
    pauses = iter([*(late for _, late in events), pause])
    coming: Iterator[Message] = iter(messages)
    held: list[Message] = []

    def get(timeout: float | None = None) -> Message:
        if not held:
            held.append(next(coming))
            if timeout is not None and next(pauses):
                raise queue.Empty
            if timeout is None:
                next(pauses, None)
        return held.pop()

    groups = list(together(get, 0.1))
    assert [message for group in groups for message in group] == messages
    assert all(groups)
    assert len(groups) <= 1 + pause + sum(late for _, late in events)
