"""The position of the samples in a WAV file, also when the header is wrong."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_api.engine.audio.wav import WavLayout, wav_layout

RATE = 32000  # bytes per second
FMT = struct.pack("<HHIIHH", 1, 1, 16000, RATE, 2, 16)


def wav(samples: bytes, stated: int | None = None, before: bytes = b"", fmt: bytes = FMT) -> bytes:
    size = len(samples) if stated is None else stated
    body = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + before + b"data" + struct.pack("<I", size) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


def sound(size: int) -> bytes:
    """Samples without a byte that is 0 or a letter."""
    return b"\x81\x02\xf3\x04" * (size // 4)


def layout(content: bytes) -> WavLayout:
    return wav_layout(lambda place, size: content[place : place + size], len(content))


def samples_of(content: bytes) -> bytes:
    found = layout(content)
    if not found.pieces:
        return b""
    return b"".join(content[place : place + size] for place, size in found.pieces[1:])


@given(st.integers(1, 40_000), st.integers(0, 39_999), st.sampled_from([b"", b"LIST\x04\0\0\0abcd"]))
def test_a_size_that_is_too_small_hides_nothing(blocks: int, stated: int, before: bytes) -> None:
    content = wav(sound(4 * blocks), min(stated, 4 * blocks), before)
    found = layout(content)
    left = 4 * blocks - stated
    if stated and left > 0.1 * RATE:
        assert samples_of(content) == sound(4 * blocks)
        assert found.stated == pytest.approx(4 * blocks / RATE)
        assert found.size_at == content.index(b"data") + 4
        assert "all of which was read" in " ".join(found.warnings)
    else:
        assert found.pieces == ()
        assert found.warnings == ()


@pytest.mark.parametrize(
    "behind",
    [
        b"",
        b"LIST\x04\0\0\0INFO",
        b"id3 \x10\0\0\0" + b"\xff" * 16,
        b"bext\0\0\0\0PEAK\x04\0\0\0\xff\xff\xff\xff",
        b"TAG" + b"\x81" * 125,
        bytes(1_000_000),
    ],
)
def test_tags_and_padding_after_the_samples_are_no_audio(behind: bytes) -> None:
    for samples in (sound(64_000), sound(64_000) + b"\x81"):
        padding = b"\0" * (len(samples) % 2) if behind else b""
        assert layout(wav(samples) + padding + behind) == WavLayout(len(samples) / RATE)


def test_files_one_behind_the_other_are_one_recording() -> None:
    one, two, three = (sound(size) for size in (64_000, 4000, 32_000))
    content = wav(one) + wav(two, before=b"LIST\0\0\0\0") + wav(three)
    assert samples_of(content) == one + two + three
    found = layout(content)
    assert found.stated == pytest.approx(100_000 / RATE)
    assert "3 WAV files" in " ".join(found.warnings)
    assert "states" not in " ".join(found.warnings)
    short = wav(one) + wav(two) + wav(three, 4000)
    assert samples_of(short) == one + two + three
    assert "states" in " ".join(layout(short).warnings)


def test_another_format_behind_is_left_out_with_a_warning() -> None:
    other = struct.pack("<HHIIHH", 1, 2, 44100, 176400, 4, 16)
    found = layout(wav(sound(64_000)) + wav(sound(64_000), fmt=other))
    assert found.pieces == ()
    assert found.stated == 2.0
    assert "left out" in " ".join(found.warnings)


def sparse(head: bytes, size: int, tail: bytes = b"") -> Callable[[int, int], bytes]:
    """A virtual file that is full of sound between its two ends."""

    def read(place: int, length: int) -> bytes:
        length = max(0, min(length, size - place))
        content = bytearray(sound(length + 8)[place % 4 : place % 4 + length])
        for start, part in ((0, head), (size - len(tail), tail)):
            for index, byte in enumerate(part, start - place):
                if 0 <= index < length:
                    content[index] = byte
        return bytes(content)

    return read


@pytest.mark.parametrize("tail", [b"", b"LIST\x04\0\0\0abcd"])
@pytest.mark.parametrize("wraps", [1, 2])
def test_a_size_that_wrapped_at_four_gibibytes_is_unwrapped(wraps: int, tail: bytes) -> None:
    stated = 1_000_000
    head = wav(b"", stated)
    samples = (wraps << 32) + stated
    found = wav_layout(sparse(head, len(head) + samples + len(tail), tail), len(head) + samples + len(tail))
    assert found.pieces == ((0, len(head)), (len(head), samples))
    assert found.stated == samples / RATE


@pytest.mark.parametrize("stated", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_a_size_that_says_unknown_is_left_to_libav(stated: int) -> None:
    assert layout(wav(sound(64_000), stated)) == WavLayout(None)


def test_a_file_that_is_cut_short_states_what_it_was_to_be() -> None:
    assert layout(wav(sound(64_000), 320_000)) == WavLayout(10.0)


def test_chunks_without_number_cost_little() -> None:
    reads = 0
    content = wav(sound(4000), before=b"note\0\0\0\0" * 1_000_000)

    def read(place: int, size: int) -> bytes:
        nonlocal reads
        reads += 1
        return content[place : place + size]

    assert wav_layout(read, len(content)) == WavLayout(None)
    assert reads < 2000


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything(content: bytes) -> None:
    layout(content)
    layout(wav(sound(8000), 4)[:44] + content)
    layout(wav(sound(8000)) + b"RIFF" + content[:4] + b"WAVE" + content[4:])
