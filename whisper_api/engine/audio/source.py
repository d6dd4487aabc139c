"""The bytes of an audio file, wherever they come from, and what their beginning says that they are."""

from __future__ import annotations

import bisect
import contextlib
import errno
import functools
import io
import itertools
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from whisper_api.engine.audio.wav import WavLayout, wav_layout
from whisper_api.errors import InvalidAudio

__all__ = ["AudioSource", "opened"]

MAX_BUFFERED_HEAD = 1 << 16
# As the size of a WAV file's samples; libav takes it for unknown.
UNTIL_THE_END = b"\xff" * 4
STREAMABLE = (
    b"RIFF",
    b"RF64",
    b"ID3",
    b"fLaC",
    b"OggS",
    b"\x1aE\xdf\xa3",
    b"#!AMR",
    b".snd",
    b"FLV",
    b"\x47",
    b"\xff",
)
# What people send by mistake, by its first bytes: (offset, bytes, what it is).
NOT_AUDIO = (
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (8, b"WEBP", "a WebP image"),
    (4, b"ftyphei", "a HEIC image"),
    (4, b"ftypmif1", "a HEIC image"),
    (4, b"ftypavif", "an AVIF image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (0, b"%PDF", "a PDF document"),
    (0, b"{\\rtf", "an RTF document"),
    (0, b"\xd0\xcf\x11\xe0", "an Office document"),
    (0, b"PK\x03\x04", "a ZIP archive or an Office document"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"\xfd7zXZ", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"MThd", "a MIDI file, which holds notes and no sound"),
    (0, b"SQLite format", "an SQLite database"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a Windows program"),
    (0, b"#EXTM3U", "a playlist, which only names other files"),
)
KNOWN_AUDIO = (
    (8, b"WAVE", "a WAV file"),
    (8, b"AVI ", "an AVI video"),
    (8, b"AIF", "an AIFF file"),
    (4, b"ftyp", "an MP4, M4A or MOV file"),
    (0, b"ID3", "an MP3 file"),
    (0, b"fLaC", "a FLAC file"),
    (0, b"OggS", "an Ogg file"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM file"),
    (0, b"caff", "a CAF file"),
    (0, b"#!AMR", "an AMR file"),
    (0, b"0&\xb2u", "a WMA or WMV file"),
)


class AudioSource:
    """The bytes that libav reads, of a file that can be sought or of a stream that cannot."""

    def __init__(self, file: Any, name: str, check: Callable[[], None]) -> None:
        self.name = name
        self._file = self._original = file
        self._check = check
        try:
            self.size: int | None = file.seek(0, os.SEEK_END)
            if self.size is None:
                self.size = file.tell()
            file.seek(0)
        except (AttributeError, OSError):
            self.size = None
        self.head = self._fill(MAX_BUFFERED_HEAD)
        self._unread = b""
        if self.size is not None:
            file.seek(0)
        elif self.head.startswith(STREAMABLE):
            self._unread = self.head
        else:
            whole = io.BytesIO()
            whole.write(self.head)
            while block := self._fill(1 << 20):
                whole.write(block)
            self.size = whole.tell()
            whole.seek(0)
            self._file = self._original = whole

    def _fill(self, size: int) -> bytes:
        """``size`` bytes, fewer only at the end: a pipe gives what it has."""
        blocks = []
        while size and (block := self._read(size)):
            blocks.append(block)
            size -= len(block)
            self._check()
        return b"".join(blocks)

    def _read(self, size: int) -> bytes:
        block = self._file.read(size)
        if isinstance(block, str):
            raise InvalidAudio(f"{self.name}: the file object gives text; open it in binary mode")
        if block is not None and len(block) > size:
            raise InvalidAudio(f"{self.name}: the file object gave {len(block)} bytes when asked for {size}")
        return bytes(block or b"")

    def read(self, size: int) -> bytes:
        if self._unread:
            block, self._unread = self._unread[:size], self._unread[size:]
            return block
        return self._read(size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.size is not None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -errno.EINVAL  # a damaged file can name any place; libav takes this as an answer
        return self.tell()

    def tell(self) -> int:
        return int(self._file.tell())

    def rewind(self) -> None:
        if self.size is not None:
            with contextlib.suppress(OSError, ValueError):
                self._original.seek(0)

    def at(self, offset: int, size: int) -> bytes:
        """Bytes from elsewhere in the file, as far as they can be had."""
        if self.size is None:
            return self.head[offset : offset + size]
        place = self._file.tell()
        self._file.seek(max(0, offset))
        block = self._fill(size)
        self._file.seek(place)
        return block

    def found(self) -> str:
        """What the first bytes say that this is."""
        return _match(self.head, NOT_AUDIO) or _text(self.head) or _match(self.head, KNOWN_AUDIO) or "unknown data"

    def xing_frames(self) -> int | None:
        """The number of frames that an MP3's first frame states (the Xing or Info header), when it does."""
        start = 0
        if self.head[:3] == b"ID3" and len(self.head) >= 10:
            size = self.head[6:10]
            start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(size, (21, 14, 7, 0), strict=True))
        frame = self.at(start, 4096)
        place = max(frame.find(b"Xing"), frame.find(b"Info"))
        if place < 0 or len(frame) < place + 12 or not frame[place + 7] & 1:
            return None
        return int.from_bytes(frame[place + 8 : place + 12], "big")

    @functools.cached_property
    def wav(self) -> WavLayout | None:
        """Where the samples of a WAV file are; None for another file."""
        if self.head[:4] != b"RIFF" or self.head[8:12] != b"WAVE":
            return None
        return wav_layout(self.at, self.size)

    def splice(self) -> None:
        """Show libav all samples of a WAV file whose header states fewer than there are."""
        if self.wav is None or not self.wav.pieces:
            return
        layout = self.wav
        spliced = _Spliced(self._file, layout.pieces, {layout.size_at: UNTIL_THE_END})
        self._file, self.size = spliced, spliced.size

    def following(self, place: int, size: int) -> Iterator[bytes]:
        """The bytes behind a place, in blocks, with ``size`` bytes of each block again in the next one."""
        if self.size is None:
            return
        while block := self.at(place, 1 << 20):
            yield block
            if place + len(block) >= self.size:
                return
            place += max(1, len(block) - size)

    def ends_inside_ogg_page(self) -> bool:
        """True for an Ogg file whose last page is incomplete or does not carry the end mark (RFC 3533, section 6)."""
        if self.size is None or not self.head.startswith(b"OggS"):
            return False
        tail = self.at(self.size - MAX_BUFFERED_HEAD - 282, MAX_BUFFERED_HEAD + 282)
        place = tail.rfind(b"OggS")
        page = tail[place:]
        if place < 0 or len(page) < 27 or len(page) < 27 + page[26]:
            return True
        return len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]) or not page[5] & 4


class _Spliced(io.RawIOBase):
    """Pieces of a file as one file.

    Args:
        file: can be sought.
        pieces: (offset, bytes) of each.
        patches: place in the spliced file to the bytes that stand there instead; each inside one piece.
    """

    def __init__(self, file: Any, pieces: Sequence[tuple[int, int]], patches: Mapping[int, bytes]) -> None:
        self._source = file
        self._pieces = pieces
        self._starts = [0, *itertools.accumulate(length for _, length in pieces)]
        self._patches = patches
        self._place = 0
        self.size = self._starts[-1]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = offset + (0, self._place, self.size)[whence]
        if place < 0:
            raise ValueError("a place before the beginning")
        self._place = place
        return place

    def tell(self) -> int:
        return self._place

    def read(self, size: int = -1) -> bytes:
        number = bisect.bisect_right(self._starts, self._place) - 1
        if number >= len(self._pieces):
            return b""
        offset, length = self._pieces[number]
        inside = self._place - self._starts[number]
        self._source.seek(offset + inside)
        block = bytearray(self._source.read(min(size, length - inside)) or b"")
        for place, patch in self._patches.items():
            for index, byte in enumerate(patch, place - self._place):
                if 0 <= index < len(block):
                    block[index] = byte
        self._place += len(block)
        return bytes(block)


@contextlib.contextmanager
def opened(source: Any, check: Callable[[], None]) -> Iterator[AudioSource]:
    """The source as bytes that can be read; refused here when it is plainly not audio."""
    with contextlib.ExitStack() as stack:
        if isinstance(source, (bytes, bytearray, memoryview)):
            data = AudioSource(io.BytesIO(source), "the data", check)
        elif isinstance(source, (str, os.PathLike)):
            path = Path(source)
            try:
                if stat.S_ISDIR(path.stat().st_mode):
                    raise InvalidAudio(f"{path} is a directory, not an audio file")
                data = AudioSource(stack.enter_context(path.open("rb", buffering=0)), path.name, check)
            except FileNotFoundError as error:
                raise InvalidAudio(f"{path}: there is no such file") from error
            except (OSError, ValueError) as error:
                raise InvalidAudio(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        elif hasattr(source, "read"):
            name = getattr(source, "name", None)
            data = AudioSource(
                source,
                Path(name).name if isinstance(name, str) else "the file object",
                check,
            )
        else:
            raise InvalidAudio(
                f"a {type(source).__name__} is not audio: give a path, bytes, a binary file object or a NumPy array"
            )
        if not data.head:
            raise InvalidAudio(f"{data.name} is empty")
        if found := _match(data.head, NOT_AUDIO) or _text(data.head):
            raise InvalidAudio(f"{data.name} is {found}, not audio")
        try:
            yield data
        finally:
            data.rewind()


def _match(head: bytes, table: tuple[tuple[int, bytes, str], ...]) -> str | None:
    return next((what for offset, magic, what in table if head.startswith(magic, offset)), None)


def _text(head: bytes) -> str | None:
    start = head[:4096]
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) and b"\0" in start[2:4]:
        return "text"
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3 or error.start == 0:
            return None
        text = start[: error.start].decode("utf-8")
    if any(ord(character) < 32 and character not in "\t\n\r\f\v\x1b" for character in text):
        return None
    beginning = text.lstrip("\ufeff \t\r\n").lower()
    if beginning.startswith(("<!doctype html", "<html")):
        return "a web page (HTML)"
    return "text"
