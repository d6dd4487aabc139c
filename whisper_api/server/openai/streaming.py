"""A transcription as server-sent events: pieces of text as they are decoded, and the whole text at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from whisper_api.errors import JobFailed
from whisper_api.job_values import JobSegmentEvent
from whisper_api.jobs.events import TERMINAL
from whisper_api.schema import Transcript
from whisper_api.server.openai.answers import diarized_segments, done_event
from whisper_api.server.openai.bodies import StreamEvent, TextDelta
from whisper_api.server.openai.errors import error_body, job_problem
from whisper_api.server.openai.openai_request import OpenAIRequest
from whisper_api.server.realtime.event_stream import EventStream
from whisper_api.server.realtime.waiting import watch_events
from whisper_api.server.responses.delivery import LOOK_SECONDS, background, until_gone
from whisper_api.server.responses.problems import Problem, problem_of
from whisper_api.server.responses.results import in_turn, note_delivery
from whisper_api.server.state import state_of, viewer_of
from whisper_api.word_spacing import joined, space_between

if TYPE_CHECKING:
    from whisper_api.jobs.service import JobService

log = logging.getLogger(__name__)

# Without an empty line after it: OpenAI's client for Go, before 3.43, takes that for an event without data, and fails.
COMMENT = b": still here\n"


async def stream_response(
    request: Request, job_id: str, openai_request: OpenAIRequest, waiting: AbstractContextManager[object]
) -> Response:
    """A job as a stream of events. An error becomes the last event.

    Args:
        request: a request whose body was read.
        job_id: id of the job.
        openai_request: the values of the request's form.
        waiting: a context that was entered for this request; it is left when the stream ends.
    """
    frames = _frames(request, job_id, openai_request, waiting)
    # Closing a generator that has not begun would not leave the context ``waiting``.
    return EventStream(await anext(frames), frames)


class Deltas:
    """Puts partial segments into the order of time, because a client cannot take back text that it has received.

    Attributes:
        text: the text that was sent so far.
    """

    def __init__(self) -> None:
        self.text = ""
        self._next = 0
        self._early: dict[int, str] = {}

    def add(self, event: JobSegmentEvent) -> Iterator[TextDelta]:
        """The deltas that can be sent after this event; later versions of the same segments are ignored."""
        if event.index >= self._next:
            self._early.setdefault(event.index, joined(segment.text for segment in event.segments))
        while (text := self._early.pop(self._next, None)) is not None:
            self._next += 1
            if text:
                yield self._delta(space_between(self.text, text) + text)

    def end(self, whole: str) -> Iterator[TextDelta]:
        """The rest of the whole text; nothing when the whole text does not begin with the text that was sent."""
        if whole.startswith(self.text) and len(whole) > len(self.text):
            yield self._delta(whole[len(self.text) :])

    def _delta(self, text: str) -> TextDelta:
        self.text += text
        return TextDelta(delta=text)


async def _frames(
    request: Request, job_id: str, openai_request: OpenAIRequest, waiting: AbstractContextManager[object]
) -> AsyncGenerator[bytes, None]:
    try:
        with waiting:
            yield COMMENT
            async with contextlib.aclosing(_run(request, job_id, openai_request)) as frames:
                async for frame in frames:
                    yield frame
    except ClientDisconnect:
        raise
    except Exception as error:
        problem = job_problem(error) if isinstance(error, JobFailed) else problem_of(error)
        if problem.status == 500 and not isinstance(error, JobFailed):
            log.error("a stream failed", exc_info=error)
        yield b"event: error\n" + _frame(error_body(problem))


async def _run(request: Request, job_id: str, openai_request: OpenAIRequest) -> AsyncGenerator[bytes, None]:
    state = state_of(request)
    deltas = Deltas()
    ended = False
    async with contextlib.aclosing(watch_events(request, job_id)) as batches:
        async for batch in batches:
            ended = any(isinstance(each.event, TERMINAL) for each in batch)
            segments = [each.event for each in batch if isinstance(each.event, JobSegmentEvent)]
            frames = [_frame(delta) for segment in segments for delta in deltas.add(segment)]
            yield b"".join(frames) or COMMENT
    if not ended:
        raise Problem(503, "draining", "The server stops. Send the same request again: the job goes on where it is")
    last = await in_turn(request, _last_frames, state.service, job_id, viewer_of(request), deltas, openai_request)
    async with background(until_gone(request.receive)) as gone:
        yield last
        await asyncio.wait({gone}, timeout=LOOK_SECONDS)
        if gone.done():
            return
    await note_delivery(state, job_id)


def _last_frames(
    service: JobService, job_id: str, viewer: str | None, deltas: Deltas, openai_request: OpenAIRequest
) -> bytes:
    _, transcript = service.result(job_id, viewer)
    return b"".join(map(_frame, _last_events(deltas, transcript, openai_request)))


def _last_events(deltas: Deltas, transcript: Transcript, openai_request: OpenAIRequest) -> Iterator[StreamEvent]:
    done = done_event(transcript, openai_request)
    yield from deltas.end(done.text)
    if openai_request.response_format == "diarized_json":
        yield from diarized_segments(transcript)
    yield done


def _frame(event: StreamEvent) -> bytes:
    return b"data: %s\n\n" % msgspec.json.encode(event)
