"""The bytes of an audio file as libav reads them, and what their beginning says that they are."""

from __future__ import annotations

import bisect
import errno
import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence

from whisper_api.engine.audio.wav import Read, WavLayout, wav_layout
from whisper_api.errors import InvalidAudio

HEAD_BYTES = 1 << 16
# As the size of a WAV file's samples; libav takes it for unknown.
UNTIL_THE_END = b"\xff" * 4
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
    """The file object that libav reads, and what its bytes say besides.

    Args:
        read: gives bytes by offset and number: fewer only at the end of a file, and any number of a stream, which
            gives its bytes in their order whatever the offset.
        size: of the file in bytes; None for a stream.
        name: for messages.

    Raises:
        InvalidAudio: the first bytes are plainly not audio.
    """

    def __init__(self, read: Read, size: int | None, name: str) -> None:
        self.name = name
        self.size = size
        self._read = read
        self._position = 0
        self.head = self._fill(0, HEAD_BYTES)
        self._unread = b"" if self.seekable() else self.head
        if not self.head:
            raise InvalidAudio(f"{name} is empty")
        if found := _match(self.head, NOT_AUDIO) or _text(self.head):
            raise InvalidAudio(f"{name} is {found}, not audio")

    def read(self, size: int) -> bytes:
        if self._unread:
            block, self._unread = self._unread[:size], self._unread[size:]
        elif self.size is not None and self._position >= self.size:
            return b""
        else:
            block = self._read(self._position, size)
        self._position += len(block)
        return block

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.size is not None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}.get(whence)
        if base is None or base + offset < 0:
            return -errno.EINVAL  # a damaged file can name any place; libav takes this as an answer
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def at(self, offset: int, size: int) -> bytes:
        """Read bytes from elsewhere in the file; of a stream, from its beginning only."""
        return self.head[offset : offset + size] if self.size is None else self._fill(max(0, offset), size)

    def _fill(self, offset: int, size: int) -> bytes:
        blocks = []
        while size and (block := self._read(offset, size)):
            blocks.append(block)
            offset += len(block)
            size -= len(block)
        return b"".join(blocks)

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
        if self.wav is not None and self.wav.pieces:
            spliced = _Spliced(self._read, self.wav.pieces, {self.wav.size_at: UNTIL_THE_END})
            self._read, self.size = spliced.read, spliced.size

    def following(self, place: int, size: int) -> Iterator[bytes]:
        """Read the bytes behind a place in blocks; each begins with the last ``size`` bytes of the one before."""
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
        tail = self.at(self.size - HEAD_BYTES - 282, HEAD_BYTES + 282)
        place = tail.rfind(b"OggS")
        page = tail[place:]
        if place < 0 or len(page) < 27 or len(page) < 27 + page[26]:
            return True
        return len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]) or not page[5] & 4


class _Spliced:
    """Pieces of a file as one file.

    Args:
        read: reads the file.
        pieces: (offset, bytes) of each.
        patches: place in the spliced file to the bytes that stand there instead; each inside one piece.
    """

    def __init__(self, read: Read, pieces: Sequence[tuple[int, int]], patches: Mapping[int, bytes]) -> None:
        self._read = read
        self._pieces = pieces
        self._starts = [0, *itertools.accumulate(length for _, length in pieces)]
        self._patches = patches
        self.size = self._starts[-1]

    def read(self, position: int, size: int) -> bytes:
        number = bisect.bisect_right(self._starts, position) - 1
        if number >= len(self._pieces):
            return b""
        offset, length = self._pieces[number]
        inside = position - self._starts[number]
        block = bytearray(self._read(offset + inside, min(size, length - inside)))
        for place, patch in self._patches.items():
            for index, byte in enumerate(patch, place - position):
                if 0 <= index < len(block):
                    block[index] = byte
        return bytes(block)


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
