"""The bounds of an HTTP/2 connection: the frames that a client may send, and the memory that they take."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator

import h2.connection
import h2.events
import h2.settings
import pytest
from h2.config import H2Configuration
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from hyperframe.frame import ContinuationFrame, DataFrame, HeadersFrame, PingFrame, PriorityFrame, SettingsFrame

from whisper_api.server.connections.frames import CLOSED_STREAMS, IDLE_FRAMES, BoundedConnection

GET = [(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "x")]
# More idle frames than a client may send at once and in the seconds that a slow machine takes to read them.
MANY = 20 * IDLE_FRAMES


@pytest.fixture
def client() -> h2.connection.H2Connection:
    client = h2.connection.H2Connection(H2Configuration(client_side=True))
    client.initiate_connection()
    return client


@pytest.fixture
def server(client: h2.connection.H2Connection) -> BoundedConnection:
    server = BoundedConnection(100)
    server.initiate_connection()
    server.receive_data(client.data_to_send())
    client.receive_data(server.data_to_send())
    server.receive_data(client.data_to_send())
    return server


def pings() -> Iterator[bytes]:
    frame = PingFrame(0)
    frame.opaque_data = b"12345678"
    while True:
        yield frame.serialize()


def settings() -> Iterator[bytes]:
    while True:
        yield SettingsFrame(0).serialize()


def priorities() -> Iterator[bytes]:
    for number in range(1, 1 << 30, 2):
        frame = PriorityFrame(number)
        frame.stream_weight = 1
        yield frame.serialize()


def resets() -> Iterator[bytes]:
    """Rapid reset: the client resets each request as soon as it was sent."""
    client = h2.connection.H2Connection(H2Configuration(client_side=True))
    for number in range(1, 1 << 30, 2):
        client.send_headers(number, GET, end_stream=True)
        client.reset_stream(number)
        yield client.data_to_send()


def empty_data() -> Iterator[bytes]:
    client = h2.connection.H2Connection(H2Configuration(client_side=True))
    client.send_headers(1, GET)
    yield client.data_to_send()
    while True:
        yield DataFrame(1, b"").serialize()


@pytest.mark.parametrize("frames", [pings, settings, priorities, resets, empty_data])
def test_frames_that_transfer_nothing_are_bounded(
    server: BoundedConnection, frames: Callable[[], Iterator[bytes]]
) -> None:

    def receive_many() -> None:
        for sent in itertools.islice(frames(), MANY):
            server.receive_data(sent)
            server.data_to_send()

    with pytest.raises(ProtocolError) as raised:
        receive_many()
    assert raised.value.error_code == ErrorCodes.ENHANCE_YOUR_CALM


def test_a_client_may_send_any_number_of_requests_that_are_answered_and_few_of_them_are_remembered(
    server: BoundedConnection, client: h2.connection.H2Connection
) -> None:
    for number in range(1, 2 * MANY // 4, 2):
        client.send_headers(number, GET, end_stream=True)
        server.receive_data(client.data_to_send())
        server.send_headers(number, [(":status", "200")])
        server.send_data(number, b"ok", end_stream=True)
        server.earned(sent_bytes=2, answers=1)
        client.receive_data(server.data_to_send())
    assert server.open_inbound_streams == 0
    # h2 has no public way to the closed streams that it remembers.
    assert len(server._closed_streams) <= CLOSED_STREAMS  # noqa: SLF001


def test_a_client_may_open_its_windows_after_each_frame_and_upload_in_small_pieces(
    server: BoundedConnection, client: h2.connection.H2Connection
) -> None:
    client.send_headers(1, GET)
    server.receive_data(client.data_to_send())
    server.send_headers(1, [(":status", "200")])
    for _ in range(MANY // 4):
        server.send_data(1, bytes(4096))
        server.earned(sent_bytes=4096)
        client.receive_data(server.data_to_send())
        client.increment_flow_control_window(4096)
        client.increment_flow_control_window(4096, 1)
        client.send_data(1, bytes(1024))
        for event in server.receive_data(client.data_to_send()):
            if isinstance(event, h2.events.DataReceived):
                server.earned(sent_bytes=len(event.data))
                server.acknowledge_received_data(event.flow_controlled_length, 1)
        client.receive_data(server.data_to_send())


def test_a_request_head_without_an_end_is_refused(server: BoundedConnection) -> None:
    """The attack of CVE-2024-27316."""
    first = HeadersFrame(1, bytes(16_000))
    more = ContinuationFrame(1, bytes(16_000))
    server.receive_data(first.serialize())
    assert server.begun
    server.receive_data(more.serialize())
    with pytest.raises(ProtocolError) as raised:
        server.receive_data(more.serialize())
    assert raised.value.error_code == ErrorCodes.ENHANCE_YOUR_CALM


def test_unknown_settings_are_not_kept(server: BoundedConnection) -> None:
    kept = len(server.remote_settings)
    for start in range(100, 60_000, 2000):
        body = b"".join(struct.pack(">HL", code, 1) for code in range(start, start + 2000))
        server.receive_data(struct.pack(">L", len(body))[1:] + b"\x04\x00\0\0\0\0" + body)
    assert len(server.remote_settings) == kept


def test_a_client_cannot_make_the_encoder_remember_more(server: BoundedConnection) -> None:
    frame = SettingsFrame(0, settings={int(h2.settings.SettingCodes.HEADER_TABLE_SIZE): 1 << 30})
    server.receive_data(frame.serialize())
    server.bound_header_table()
    assert server.encoder.header_table_size <= 4096


def test_half_a_frame_counts_as_begun(server: BoundedConnection, client: h2.connection.H2Connection) -> None:
    client.send_headers(1, GET, end_stream=True)
    sent = client.data_to_send()
    begun = []
    for piece in (b"", sent[:5], sent[5:]):
        server.receive_data(piece)
        begun.append(server.begun)
    assert begun == [False, True, False]
