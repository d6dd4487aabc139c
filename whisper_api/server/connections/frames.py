"""h2's state of an HTTP/2 connection, with bounds on its memory and on frames that transfer nothing."""

from __future__ import annotations

import time

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from h2.frame_buffer import FrameBuffer
from h2.settings import SettingCodes, Settings
from hyperframe.frame import Frame, SettingsFrame

from whisper_api.server.connections.settings import MAX_HEADER_BYTES

# Number of frames that a client may send without a transfer or a response, at once and in a second.
IDLE_FRAMES = 2000
IDLE_FRAMES_PER_SECOND = 100
# Transfers and responses allow more frames: a client that reads sends up to two WINDOW_UPDATEs for each of our frames.
BYTES_PER_FRAME = 512
FRAMES_PER_ANSWER = 8
# h2 remembers how streams were closed, by default 65,536 of them.
CLOSED_STREAMS = 2048
# Number of bytes of sent headers that the encoder remembers, even when the client allows more (RFC 7541).
HEADER_TABLE_BYTES = 4096
KNOWN_SETTINGS = frozenset(int(code) for code in SettingCodes)


class TooManyFrames(ProtocolError):
    """Too many frames transfer nothing: pings, settings, requests that the client resets (CVE-2023-44487)."""

    error_code = ErrorCodes.ENHANCE_YOUR_CALM


class BoundedConnection(H2Connection):
    """An HTTP/2 connection of a server.

    Args:
        max_streams: streams that the client may have open at a time.
    """

    MAX_CLOSED_STREAMS = CLOSED_STREAMS

    def __init__(self, max_streams: int) -> None:
        super().__init__(H2Configuration(client_side=False, header_encoding=None))
        self.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: max_streams,
                SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES,
            },
        )
        self.incoming_buffer = self.frames = CountedFrames()

    @property
    def begun(self) -> bool:
        """Whether an unfinished frame or request head has arrived."""
        return self.frames.begun

    def earned(self, sent_bytes: int = 0, answers: int = 0) -> None:
        """Let the client send more frames, after a transfer or a response.

        Args:
            sent_bytes: of a body, in either direction.
            answers: responses that have ended.
        """
        self.frames.allow(sent_bytes / BYTES_PER_FRAME + answers * FRAMES_PER_ANSWER)

    def bound_header_table(self) -> None:
        """Keep the encoder's memory small after the client has allowed it more."""
        if self.encoder.header_table_size > HEADER_TABLE_BYTES:
            self.encoder.header_table_size = HEADER_TABLE_BYTES


class CountedFrames(FrameBuffer):
    """Counts frames, and bounds the header block that is put together from HEADERS and CONTINUATION."""

    def __init__(self) -> None:
        super().__init__(server=True)
        self.count = 0
        self._allowed = float(IDLE_FRAMES)
        self._refilled = time.monotonic()
        self._head_bytes = 0

    @property
    def begun(self) -> bool:
        return bool(self._data or self._headers_buffer)

    def allow(self, frames: float) -> None:
        self._allowed = min(self._allowed + frames, IDLE_FRAMES)

    def _update_header_buffer(self, f: Frame | None) -> Frame | None:
        self.count += 1
        self._allowed -= 1
        if self._allowed < 0:
            now = time.monotonic()
            self.allow((now - self._refilled) * IDLE_FRAMES_PER_SECOND)
            self._refilled = now
            if self._allowed < 0:
                raise TooManyFrames("too many frames that transfer nothing")
        if isinstance(f, SettingsFrame):
            # h2 would keep up to 65,536 unknown settings for ever; RFC 9113 (section 6.5.2) demands to ignore them.
            f.settings = {code: value for code, value in f.settings.items() if code in KNOWN_SETTINGS}
        frame = super()._update_header_buffer(f)
        self._head_bytes = self._head_bytes + len(getattr(f, "data", b"")) if self._headers_buffer else 0
        if self._head_bytes > MAX_HEADER_BYTES:
            raise TooManyFrames("the head of the request is too large")
        return frame
