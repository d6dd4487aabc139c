"""One string of a JSON body that is audio in base64, or says where audio is: read in pieces, and never held whole."""

from __future__ import annotations

import base64
import binascii
import re

import msgspec

from whisper_api.errors import InvalidOption

__all__ = ["MAX_HEAD_BYTES", "JsonAudio"]

# An address, or what comes before the data in a data URL.
MAX_HEAD_BYTES = 8 << 10
# Some write base64 in lines.
_SPACE = b" \t\r\n\f\v"
# The alphabet of URLs (RFC 4648, section 5) is the usual one but for two characters.
_USUAL = bytes.maketrans(b"-_", b"+/")
_CUT_ESCAPE = re.compile(rb"\\(?:u[0-9A-Fa-f]{0,3})?\Z")
_ADDRESS = re.compile(rb"https?:", re.IGNORECASE)
_DATA_URL = re.compile(rb"data:", re.IGNORECASE)


class JsonAudio:
    """The audio of one string, as it comes.

    Args:
        field: the name that errors are told with.
        is_address: whether it says where the audio is, unless it is a data URL.

    Attributes:
        address: where the audio is, once the string has ended; empty when the string is the audio itself.
    """

    def __init__(self, field: str, *, is_address: bool) -> None:
        self.address = ""
        self._field = field
        self._is_address = is_address
        self._escape = b""
        # What came before it is known what the string is; None after that.
        self._head: bytes | None = b""
        self._undecoded = b""
        self._padded = False

    def feed(self, piece: bytes) -> bytes:
        """Take some more of what stands between the quotes, and give the audio that is in it.

        Raises:
            InvalidOption: it is not base64.
        """
        piece = self._unescaped(self._escape + piece)
        if self._head is None:
            return self._decoded(piece)
        self._head += piece
        return self._begun() if len(self._head) > MAX_HEAD_BYTES else b""

    def finish(self) -> bytes:
        """Say that the string has ended, and give the rest of the audio.

        Raises:
            InvalidOption: it is not base64.
        """
        if self._escape:
            raise self._invalid("base64")
        audio = b"" if self._head is None else self._begun(ended=True)
        return audio + self._binary(self._undecoded + b"=" * (-len(self._undecoded) % 4))

    def _begun(self, *, ended: bool = False) -> bytes:
        """The audio at the beginning, now that the string is long enough, or has ended, to tell what it is."""
        head, self._head = (self._head or b"").lstrip(), None
        if _DATA_URL.match(head):
            kind, comma, data = head.partition(b",")
            if not comma or not kind.rstrip().lower().endswith(b";base64"):
                raise self._invalid("a data URL with base64 (data:audio/wav;base64,...)")
            return self._decoded(data)
        if not self._is_address and not _ADDRESS.match(head):
            return self._decoded(head)
        if not ended:
            raise self._invalid(f"an address of at most {MAX_HEAD_BYTES} bytes")
        self.address = head.decode("utf-8", "replace").strip()
        return b""

    def _unescaped(self, piece: bytes) -> bytes:
        """What JSON means; some programs write the slashes and plus signs of base64 with a backslash."""
        if b"\\" not in piece:
            self._escape = b""
            return piece
        cut = _CUT_ESCAPE.search(piece)
        self._escape = cut[0] if cut else b""
        try:
            text = msgspec.json.decode(b'"%b"' % piece[: len(piece) - len(self._escape)], type=str)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise self._invalid("base64") from None
        return text.encode("utf-8", "replace")

    def _decoded(self, piece: bytes) -> bytes:
        packed = piece.translate(_USUAL, _SPACE)
        if self._padded and packed.strip(b"="):
            raise self._invalid("base64")
        plain = packed.rstrip(b"=")
        self._padded |= plain != packed
        data = self._undecoded + plain
        whole = len(data) - len(data) % 4
        self._undecoded = data[whole:]
        return self._binary(data[:whole])

    def _binary(self, data: bytes) -> bytes:
        try:
            return base64.b64decode(data, validate=True)
        except binascii.Error:
            raise self._invalid("base64") from None

    def _invalid(self, expected: str) -> InvalidOption:
        return InvalidOption(self._field, f"expected {expected}")
