"""Decoded audio as it grows: in memory within the budget, else in a file, and the same samples either way."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_api.engine.audio import track as track_module
from whisper_api.engine.audio.track import AudioMemory, Recording, Track
from whisper_api.errors import StorageError, StorageFull
from whisper_api.schema import SAMPLE_RATE

# Recordings grow by so many samples here, and so many bytes.
STEP = SAMPLE_RATE
STEP_BYTES = STEP * 4
Floats = np.ndarray[Any, np.dtype[np.float32]]


# Made once: it takes longer to make than to write.
NOISE: Floats = np.random.default_rng(0).standard_normal(3 * STEP).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def _short_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(track_module, "LEAST_GROWTH", STEP_BYTES)
        yield


def noise(samples: int, number: int = 0) -> Floats:
    """Samples that differ from those of another number."""
    return NOISE[number * 1000 :][:samples]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, STEP * 5 // 4)), min_size=1, max_size=4),
    st.sampled_from([0, STEP_BYTES, 3 * STEP_BYTES, None]),
)
def test_the_samples_are_the_same_in_memory_and_in_a_file(pieces: list[tuple[bool, int]], limit: int | None) -> None:
    memory = AudioMemory(limit)
    recording = Recording(memory)
    track = Track(recording.reserve)
    expected = []
    for number, (silent, length) in enumerate(pieces):
        block = np.zeros(length, np.float32) if silent else noise(length, number)
        if silent:
            track.silence_until(track.size + length)
        else:
            track.append(block)
        expected.append(block)
        assert limit is None or memory.used <= limit
    audio = recording.finish(track.size)
    assert audio.dtype == np.float32
    assert audio.flags.c_contiguous
    assert audio.flags.writeable
    np.testing.assert_array_equal(audio, np.concatenate(expected))
    assert memory.used in ((audio.nbytes,) if limit is None else (audio.nbytes, 0))
    del audio
    gc.collect()
    assert memory.used == 0


def test_recordings_share_the_budget_and_the_one_that_finds_no_room_goes_to_a_file() -> None:
    memory = AudioMemory(3 * STEP_BYTES)
    first, second = Recording(memory), Recording(memory)
    Track(first.reserve).append(noise(2 * STEP))
    track = Track(second.reserve)
    track.append(noise(STEP // 2, 1))
    track.append(noise(STEP, 2))
    kept, mapped = first.finish(2 * STEP), second.finish(track.size)
    np.testing.assert_array_equal(mapped, np.concatenate([noise(STEP // 2, 1), noise(STEP, 2)]))
    assert memory.used == 2 * STEP_BYTES
    # A view of a part keeps the whole array alive.
    part = kept[:10]
    del kept
    gc.collect()
    assert memory.used == 2 * STEP_BYTES
    del part
    gc.collect()
    assert memory.used == 0
    third = Recording(memory)
    Track(third.reserve).append(noise(STEP))
    audio = third.finish(STEP)
    assert memory.used == audio.nbytes == STEP_BYTES


def test_a_recording_that_is_given_up_returns_its_memory() -> None:
    memory = AudioMemory(3 * STEP_BYTES)
    recording = Recording(memory)
    Track(recording.reserve).append(noise(100))
    assert memory.used > 0
    recording.close()
    assert memory.used == 0


def test_the_file_has_no_name_and_a_hole_takes_no_room(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "there yet"
    recording = Recording(AudioMemory(0, directory))
    track = Track(recording.reserve)
    track.append(noise(1000))
    track.silence_until(1800 * SAMPLE_RATE)
    for _ in range(30):
        track.append(np.zeros(60 * SAMPLE_RATE, np.float32))
    track.append(noise(1000, 1))
    descriptor, _ = recording.reserve(0)
    assert os.fstat(descriptor).st_blocks * 512 < 1_000_000
    audio = recording.finish(track.size)
    assert list(directory.iterdir()) == []
    assert not audio[1000 : 3600 * SAMPLE_RATE].any()
    np.testing.assert_array_equal(audio[-1000:], noise(1000, 1))


def test_numbers_that_are_not_finite_are_counted_and_the_block_is_left_alone() -> None:
    block = np.array([1.0, np.nan, -np.inf, -3.0], np.float32)
    block.flags.writeable = False
    for limit in (None, 0):
        recording = Recording(AudioMemory(limit))
        track = Track(recording.reserve)
        track.append(block)
        assert (track.not_finite, track.peak) == (2, 3.0)
        np.testing.assert_array_equal(recording.finish(track.size), [1.0, 0.0, 0.0, -3.0])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="writes to /dev/full")
def test_a_disk_that_is_full_is_named() -> None:
    class Full(AudioMemory):
        def temporary_file(self) -> IO[bytes]:
            return Path("/dev/full").open("wb", buffering=0)

    recording = Recording(Full(0))
    with pytest.raises(StorageFull, match="no room on the disk"):
        Track(recording.reserve).append(noise(100))
    recording.close()


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    recording = Recording(AudioMemory(0, tmp_path / "file" / "below"))
    with pytest.raises(StorageError, match="cannot be used"):
        Track(recording.reserve).append(noise(100))
