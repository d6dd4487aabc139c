"""Which tokens of a window belong to which of the segments that its text was cut into.

Sentences, alignment and changes of speaker cut a window's text. None of them needs the tokens, so they carry those of
the whole window along, and :func:`hand_out_tokens` divides them in the end.
"""

from __future__ import annotations

import codecs
import functools
import math
from collections.abc import Callable, Sequence
from itertools import groupby

from msgspec.structs import replace

from whisper_api.schema import Segment, TokenLogprob

__all__ = ["BytesOf", "hand_out_tokens", "token_bytes", "token_logprobs"]

BytesOf = Callable[[int], bytes]
"""A text token to its UTF-8, of which a token may hold only a part."""

# A probability that is 0 after rounding has no logarithm.
LEAST_LOGPROB = -100.0


def token_bytes(spelling: str) -> bytes:
    """The bytes that a token of a byte-level vocabulary stands for.

    Args:
        spelling: as the vocabulary has it: a character for each byte.
    """
    values = _byte_values()
    if all(character in values for character in spelling):
        return bytes(values[character] for character in spelling)
    return spelling.encode()


@functools.cache
def _byte_values() -> dict[str, int]:
    """The alphabet of GPT-2's vocabulary: bytes that can be printed are themselves, the others are above U+0100."""
    printable = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
    others = (value for value in range(256) if value not in printable)
    return {chr(value): value for value in printable} | {chr(0x100 + n): value for n, value in enumerate(others)}


def token_logprobs(tokens: Sequence[int], logprobs: Sequence[float], bytes_of: BytesOf) -> tuple[TokenLogprob, ...]:
    """Tokens with their texts.

    Args:
        tokens: ids.
        logprobs: natural logarithms of their probabilities.
        bytes_of: what each id stands for.
    """
    return tuple(
        TokenLogprob(
            token=(content := bytes_of(token)).decode("utf-8", "replace"),
            bytes=tuple(content),
            logprob=round(max(logprob, LEAST_LOGPROB), 5) if not math.isnan(logprob) else LEAST_LOGPROB,
        )
        for token, logprob in zip(tokens, logprobs, strict=True)
    )


def hand_out_tokens(segments: Sequence[Segment], bytes_of: BytesOf) -> tuple[Segment, ...]:
    """Give each segment its own tokens.

    A token goes to the segment in which its first character that is not white space stands, so that the tokens of a
    window's segments, one after the other, are the window's.

    Args:
        segments: in order; those that a window was cut into have its ``seek`` and all its tokens.
        bytes_of: what each token stands for.
    """
    handed: list[Segment] = []
    for _, group in groupby(segments, key=lambda segment: segment.seek):
        pieces = list(group)
        handed.extend(pieces if len(pieces) == 1 else _divide(pieces, bytes_of))
    return tuple(handed)


def _divide(pieces: Sequence[Segment], bytes_of: BytesOf) -> list[Segment]:
    tokens, logprobs = pieces[0].tokens, pieces[0].logprobs
    places = _places(tokens, bytes_of)
    divided: list[Segment] = []
    first = before = 0
    for number, piece in enumerate(pieces):
        before += _visible(piece.text)
        after = first
        while after < len(tokens) and (number == len(pieces) - 1 or places[after] < before):
            after += 1
        divided.append(replace(piece, tokens=tokens[first:after], logprobs=logprobs[first:after]))
        first = after
    return divided


def _places(tokens: Sequence[int], bytes_of: BytesOf) -> list[int]:
    """How many visible characters stand before the first one of each token."""
    # A character may be spread over tokens: those that hold its first bytes have decoded to nothing so far.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    places, before = [], 0
    for token in tokens:
        places.append(before)
        before += _visible(decoder.decode(bytes_of(token)))
    return places


def _visible(text: str) -> int:
    return sum(not character.isspace() for character in text)
