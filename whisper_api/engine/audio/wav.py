"""Finds the samples of a WAV file whose header states a size that is too small, or that consists of several files.

A recorder that loses power leaves the size that it wrote first; a size above 4 GiB wraps around; some tools concatenate
whole files. libav reads only the samples that the first header states. The format is RIFF/WAVE (Microsoft and IBM,
"Multimedia Programming Interface and Data Specifications 1.0", 1991).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# Real files have at most a few dozen chunks. A hostile file has millions, and each chunk costs a read.
MAX_CHUNKS = 1000
MAX_FILES = 1000
# Recorders that cannot seek back write 0 or nearly the largest size. libav then reads to the end of the file.
UNKNOWN_SIZE = 0x7FFF0000
# Encoders and taggers append bytes that are not sound. Appended bytes count as sound only when they last this long.
LEAST_SECONDS = 0.1
WRAP = 1 << 32
BLOCK = 1 << 20

Read = Callable[[int, int], bytes]


@dataclass(frozen=True)
class WavLayout:
    """The parts of a WAV file that contain the recording.

    Attributes:
        stated: seconds of sound according to the headers; None when they do not say.
        pieces: (offset, bytes) of the header and of the samples, which together are the whole recording; empty when
            libav reads the whole recording from the file itself.
        size_at: offset of the samples' size in the first piece.
        warnings: a sentence for each defect of the file.
    """

    stated: float | None
    pieces: tuple[tuple[int, int], ...] = ()
    size_at: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Part:
    """The header of one RIFF file.

    Attributes:
        fmt: content of the chunk ``fmt ``.
        start: offset of the samples in the whole file.
        stated: bytes of samples according to the header.
    """

    fmt: bytes
    start: int
    stated: int

    @property
    def rate(self) -> int:
        """Bytes per second; 0 when the header does not say."""
        return int.from_bytes(self.fmt[8:12], "little")

    def seconds(self, size: int) -> float | None:
        return size / self.rate if self.rate else None


def wav_layout(read: Read, size: int | None) -> WavLayout:
    """Find the samples of a WAV file.

    Args:
        read: returns bytes by offset and number, fewer at the end of the file.
        size: bytes of the file; None for a stream, of which only the beginning can be read.
    """
    first = _part(read, 0)
    if first is None or not 0 < first.stated < UNKNOWN_SIZE:
        return WavLayout(None)
    stated = first.seconds(first.stated)
    if size is None or first.start + first.stated >= size:
        return WavLayout(stated)
    parts, lengths, other = [first], [_length(read, first, size)], False
    while len(parts) < MAX_FILES:
        following = parts[-1].start + lengths[-1]
        offset = next((at for at in (following, following + following % 2) if _is_wav(read(at, 12))), None)
        part = None if offset is None else _part(read, offset)
        if part is None:
            break
        if part.fmt != first.fmt:
            other = True
            break
        parts.append(part)
        lengths.append(_length(read, part, size) if part.stated else size - part.start)
    warnings = []
    if any(length > part.stated for part, length in zip(parts, lengths, strict=True)):
        states, holds = (_shown(first, size) for size in (sum(part.stated for part in parts), sum(lengths)))
        warnings.append(f"the file's header states {states} of sound and the file holds {holds}, all of which was read")
    if len(parts) > 1:
        warnings.append(f"the file is {len(parts)} WAV files one behind the other, all of which were read")
    if other:
        warnings.append("behind the sound is another WAV file with another sample format, which was left out")
    if lengths == [first.stated]:
        return WavLayout(stated, warnings=tuple(warnings))
    pieces = ((0, first.start), *((part.start, length) for part, length in zip(parts, lengths, strict=True)))
    stated = first.seconds(
        sum(max(part.stated % UNKNOWN_SIZE, length) for part, length in zip(parts, lengths, strict=True))
    )
    return WavLayout(stated, pieces, first.start - 4, tuple(warnings))


def _shown(part: _Part, size: int) -> str:
    length = part.seconds(size)
    return f"{size} bytes" if length is None else f"{length:.1f} s"


def _is_wav(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WAVE"


def _part(read: Read, offset: int) -> _Part | None:
    """The RIFF file at an offset; None for a file without samples."""
    at, fmt = offset + 12, b""
    for _ in range(MAX_CHUNKS):
        chunk = read(at, 8)
        if len(chunk) < 8:
            return None
        size = int.from_bytes(chunk[4:8], "little")
        if chunk[:4] == b"fmt ":
            fmt = read(at + 8, min(size, 64))
        elif chunk[:4] == b"data":
            return _Part(fmt, at + 8, size) if len(fmt) >= 16 else None
        at += 8 + size + size % 2
    return None


def _length(read: Read, part: _Part, size: int) -> int:
    """The actual number of bytes of a part's samples."""
    least = LEAST_SECONDS * part.rate
    for end in range(part.start + part.stated, size, WRAP):
        if size - end <= least or any(_is_chunk(read, at, size) for at in (end, end + end % 2)):
            return end - part.start
    return max(part.stated, _last_sound(read, part.start + part.stated, size) - part.start)


def _last_sound(read: Read, begin: int, size: int) -> int:
    """The offset behind the last byte that is not 0: some recorders fill files with zeros, which are not sound."""
    end = size
    while end > begin:
        start = max(begin, end - BLOCK)
        filled = len(read(start, end - start).rstrip(b"\0"))
        if filled:
            return start + filled
        end = start
    return begin


def _is_chunk(read: Read, at: int, size: int) -> bool:
    """Whether a chunk begins at an offset: four letters, and a size that fits the file."""
    head = read(at, 8)
    name, length = head[:4], int.from_bytes(head[4:8], "little")
    return len(head) == 8 and all(32 <= byte < 127 for byte in name) and length <= size - at - 8
