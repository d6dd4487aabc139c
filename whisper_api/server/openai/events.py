"""Events of a streamed transcription, field for field as the types of OpenAI's clients read them."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from whisper_api.schema import TokenLogprob
from whisper_api.server.openai.bodies import DiarizedSegment, ErrorBody, Language

__all__ = ["StreamEvent", "TextDelta", "TextDone"]


class TextDelta(msgspec.Struct, frozen=True, kw_only=True):
    """Some more of the text, as soon as it was decoded.

    Attributes:
        type: of the event.
        delta: to be put to the end of what came before.
    """

    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str


class TextDone(msgspec.Struct, frozen=True, kw_only=True):
    """The whole text: the last event.

    It has no ``usage``: OpenAI's type has one that counts tokens, and strict clients refuse one that counts seconds.

    Attributes:
        type: of the event.
        text: in one line.
        languages: the one that was detected, or given.
        logprobs: of every token, when ``include[]=logprobs`` asks for them.
    """

    type: Literal["transcript.text.done"] = "transcript.text.done"
    text: str
    languages: tuple[Language, ...]
    logprobs: tuple[TokenLogprob, ...] | UnsetType = UNSET


StreamEvent = DiarizedSegment | TextDelta | TextDone | ErrorBody
