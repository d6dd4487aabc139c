"""A transcription as server-sent events: its text as it is decoded, and in the end the whole of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractContextManager

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from whisper_api.errors import JobFailed
from whisper_api.jobs.events import TERMINAL
from whisper_api.schema import JobSegmentEvent, Transcript
from whisper_api.server.openai.answers import diarized_segments, done_event
from whisper_api.server.openai.errors import error_body, job_problem
from whisper_api.server.openai.events import StreamEvent, TextDelta
from whisper_api.server.openai.openai_request import OpenAIRequest
from whisper_api.server.realtime.event_stream import EventStream
from whisper_api.server.realtime.waiting import beside, until_gone
from whisper_api.server.realtime.watching import watch_news
from whisper_api.server.responses.delivery import LOOK_SECONDS
from whisper_api.server.responses.problems import Problem, problem_of
from whisper_api.server.responses.results import note_delivery
from whisper_api.server.state import blocking, state_of, viewer_of
from whisper_api.word_spacing import joined, space_between

__all__ = ["Deltas", "stream_response"]

log = logging.getLogger(__name__)

# Without an empty line after it: OpenAI's client for Go, before 3.43, takes that for an event without data, and fails.
COMMENT = b": still here\n"


async def stream_response(
    request: Request, job_id: str, openai_request: OpenAIRequest, waiting: AbstractContextManager[object]
) -> Response:
    """A job as events. An error is the last one of them.

    Args:
        request: whose body was read.
        job_id: which job.
        openai_request: what was asked for.
        waiting: was entered, and is left with the stream.
    """
    frames = _frames(request, job_id, openai_request, waiting)
    # The generator has to have begun, or closing it would not leave what it has to leave.
    return EventStream(await anext(frames), frames)


class Deltas:
    """Puts stretches of text into an order in which nothing of what was sent has to be taken back.

    Attributes:
        text: what was sent so far.
    """

    def __init__(self) -> None:
        self.text = ""
        self._next = 0
        self._early: dict[int, str] = {}

    def add(self, event: JobSegmentEvent) -> Iterator[TextDelta]:
        """What can be sent now that this stretch is known; of each, only the first form counts."""
        if event.index >= self._next:
            self._early.setdefault(event.index, joined(segment.text for segment in event.segments))
        while (text := self._early.pop(self._next, None)) is not None:
            self._next += 1
            if text:
                yield self._delta(space_between(self.text, text) + text)

    def end(self, whole: str) -> Iterator[TextDelta]:
        """What the whole text has more than was sent; nothing when it has become another text meanwhile."""
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
    async with contextlib.aclosing(watch_news(request, job_id)) as all_news:
        async for news in all_news:
            ended = any(isinstance(told.event, TERMINAL) for told in news)
            events = [told.event for told in news if isinstance(told.event, JobSegmentEvent)]
            frames = [_frame(delta) for event in events for delta in deltas.add(event)]
            yield b"".join(frames) or COMMENT
    if not ended:
        raise Problem(503, "draining", "The server stops. Send the same request again: the job goes on where it is")
    _, transcript = await blocking(None, state.service.result, job_id, viewer_of(request))
    async with beside(until_gone(request.receive)) as gone:
        yield b"".join(map(_frame, _last_events(deltas, transcript, openai_request)))
        await asyncio.wait({gone}, timeout=LOOK_SECONDS)
        if gone.done():
            return
    await note_delivery(state, job_id)


def _last_events(deltas: Deltas, transcript: Transcript, openai_request: OpenAIRequest) -> Iterator[StreamEvent]:
    done = done_event(transcript, openai_request)
    yield from deltas.end(done.text)
    if openai_request.response_format == "diarized_json":
        yield from diarized_segments(transcript)
    yield done


def _frame(event: StreamEvent) -> bytes:
    return b"data: %s\n\n" % msgspec.json.encode(event)
