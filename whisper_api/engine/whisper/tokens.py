"""Assigns the tokens of a decoded window to the segments that its text was split into.

Sentences, alignment and changes of speaker split a window's text. None of these stages needs the tokens, so each
segment carries the tokens of the whole window until :func:`hand_out_tokens` divides them.
"""

from __future__ import annotations

import codecs
import functools
import math
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from whisper_api.schema import Segment, TokenLogprob

BytesOf = Callable[[int], bytes]
"""Returns the UTF-8 bytes of a text token; a token may be only a part of a character."""

# Replaces the logarithm of a probability that rounding made 0.
LEAST_LOGPROB = -100.0


def token_bytes(spelling: str) -> bytes:
    """The bytes of a token in a byte-level vocabulary.

    Args:
        spelling: the token's spelling in the vocabulary, with one character for each byte.
    """
    values = _byte_values()
    if all(character in values for character in spelling):
        return bytes(values[character] for character in spelling)
    return spelling.encode()


@functools.cache
def _byte_values() -> dict[str, int]:
    """Character to byte in GPT-2's vocabulary: printable bytes stand for themselves, the others are above U+0100.

    The mapping is ``bytes_to_unicode`` of OpenAI's GPT-2 (Radford et al., "Language Models are Unsupervised Multitask
    Learners", 2019).
    """
    printable = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
    others = (value for value in range(256) if value not in printable)
    return {chr(value): value for value in printable} | {chr(0x100 + n): value for n, value in enumerate(others)}


def token_logprobs(tokens: Sequence[int], logprobs: Sequence[float], bytes_of: BytesOf) -> tuple[TokenLogprob, ...]:
    """Tokens with their texts.

    Args:
        tokens: ids of the tokens.
        logprobs: natural logarithms of their probabilities.
        bytes_of: returns a token's bytes.
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

    A token belongs to the segment that contains its first visible character. The joined tokens of a window's segments
    are the tokens of the window.

    Args:
        segments: segments in order. The segments of one window have the same ``seek``, and each has all of its tokens.
            Between them may be segments that were decoded by themselves.
        bytes_of: returns a token's bytes.
    """
    divided = list(segments)
    windows: dict[int | None, list[int]] = {}
    for index, segment in enumerate(segments):
        windows.setdefault(segment.seek, []).append(index)
    for indices in windows.values():
        if len(indices) > 1:
            for index, piece in zip(indices, _divide([segments[i] for i in indices], bytes_of), strict=True):
                divided[index] = piece
    return tuple(divided)


def _divide(pieces: Sequence[Segment], bytes_of: BytesOf) -> list[Segment]:
    tokens, logprobs = pieces[0].tokens, pieces[0].logprobs
    positions = _positions(tokens, bytes_of)
    divided: list[Segment] = []
    first = before = 0
    for number, piece in enumerate(pieces):
        before += _visible(piece.text)
        after = first
        while after < len(tokens) and (number == len(pieces) - 1 or positions[after] < before):
            after += 1
        divided.append(replace(piece, tokens=tokens[first:after], logprobs=logprobs[first:after]))
        first = after
    return divided


def _positions(tokens: Sequence[int], bytes_of: BytesOf) -> list[int]:
    """The number of visible characters before each token."""
    # Several tokens may share a character: the decoder returns it with the token of its last byte.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    positions, before = [], 0
    for token in tokens:
        positions.append(before)
        before += _visible(decoder.decode(bytes_of(token)))
    return positions


def _visible(text: str) -> int:
    return sum(not character.isspace() for character in text)
