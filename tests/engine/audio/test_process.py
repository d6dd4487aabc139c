"""The decoder process: a file that crashes it, stalls it or takes its memory gets a named error; other files go on."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from silence import hours_of_silence
from test_decode import encode, sine

from whisper_api.engine.audio import decode as decoding
from whisper_api.engine.audio import process
from whisper_api.engine.audio.decode import Decoded, decode, probe
from whisper_api.engine.audio.input_file import ISOLATED
from whisper_api.engine.audio.process import DecoderPool
from whisper_api.engine.audio.track import AudioMemory
from whisper_api.errors import AudioTooLong, InvalidAudio, InvalidOption, StorageFull, WhisperApiError

pytestmark = pytest.mark.skipif(not ISOLATED, reason="libav runs in this process here")

DEADLINE = 60.0
# The fault that a decoder process has when it reads a file that begins with one of these words.
HARMS = """
import os, signal, time
from whisper_api.engine.audio import decoder
decoder.STALL_CPU_SECONDS = 0.5
real = os.pread
def pread(descriptor, size, offset):
    block = real(descriptor, size, offset)
    if block.startswith(b"ABORT"):
        os.abort()
    if block.startswith(b"SLEEP"):
        time.sleep(600)
    if block.startswith(b"LOOP"):
        while True:
            pass
    if block.startswith(b"MEMORY"):
        return bytes(2 << 30)
    if block.startswith(b"DEFECT"):
        raise KeyError("a defect of ours")
    if block.startswith(b"LIE"):
        os.write(int(sys.argv[1]), b"no message at all")
    return block
os.pread = pread
"""


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[DecoderPool]:
    """A pool of decoder processes with faults on demand."""
    start, _, rest = process.COMMAND.partition(";")
    monkeypatch.setattr(process, "COMMAND", f"{start}\nsys.path[:] = sys.argv[3:]\n{HARMS}\n{rest.strip()}")
    pool = DecoderPool(limit=2)
    monkeypatch.setattr(decoding, "DECODERS", pool)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def flac() -> bytes:
    return encode(sine(16000, 2.0), 16000, "flac", "flac")


def harmful(tmp_path: Path, word: str) -> Path:
    path = tmp_path / f"{word}.wav"
    path.write_bytes(word.encode() + bytes([0, 200]) * 1000)
    return path


def running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("ABORT", r"ABORT\.wav cannot be decoded: it brings libav down .*SIGABRT"),
        ("LOOP", r"LOOP\.wav cannot be decoded: it takes too much processor time"),
        ("MEMORY", r"MEMORY\.wav takes more than 1024 MB of memory"),
        ("LIE", r"LIE\.wav cannot be decoded: it brings libav down"),
    ],
)
def test_a_file_that_brings_libav_down_is_refused_and_another_one_is_decoded_meanwhile(
    pool: DecoderPool, tmp_path: Path, flac: bytes, word: str, message: str
) -> None:
    class Waiting(io.BytesIO):
        """A file whose last bytes come when the harmful file has been refused."""

        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 0:
                refused.wait(DEADLINE)
            return super().read(min(size or -1, 4096))

    refused = threading.Event()
    decode(flac)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(decode, Waiting(flac))
        try:
            for attempt in (decode, probe):
                with pytest.raises(InvalidAudio, match=message):
                    attempt(harmful(tmp_path, word))
        finally:
            refused.set()
        assert other.result().duration == 2.0
    before = pool.pids
    assert decode(flac).duration == 2.0
    assert pool.pids == before


def test_a_defect_of_the_decoder_is_not_called_the_files(pool: DecoderPool, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a defect of ours"):
        decode(harmful(tmp_path, "DEFECT"))


def test_the_process_is_kept_for_the_next_file_and_has_no_models(pool: DecoderPool, flac: bytes) -> None:
    for _ in range(3):
        decode(flac)
        probe(flac)
        with pytest.raises(InvalidAudio):
            decode(b"\x01\x02\x03\x04" * 500)
    (pid,) = pool.pids
    maps = Path(f"/proc/{pid}/maps")
    if maps.exists():
        assert "libtorch" not in maps.read_text()
        assert "libavcodec" in maps.read_text()


def test_a_process_that_was_started_before_serves_the_first_file(pool: DecoderPool, flac: bytes) -> None:
    pool.prestart()
    (pid,) = pool.pids
    decode(flac)
    pool.prestart()
    assert pool.pids == [pid]


def test_a_process_that_was_killed_while_it_was_idle_is_replaced(pool: DecoderPool, flac: bytes) -> None:
    decode(flac)
    (pid,) = pool.pids
    os.kill(pid, signal.SIGKILL)
    until(lambda: not running(pid))
    assert decode(flac).duration == 2.0
    assert pool.pids != [pid]


def test_signals_that_stop_a_service_do_not_stop_its_decoder(pool: DecoderPool, flac: bytes) -> None:
    decode(flac)
    (pid,) = pool.pids
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, each)
    assert decode(flac).duration == 2.0
    assert pool.pids == [pid]


@pytest.mark.parametrize("at", ["check", "progress", "read"])
def test_an_exception_of_the_caller_ends_the_decoding_and_its_process(pool: DecoderPool, flac: bytes, at: str) -> None:
    class Stop(Exception):
        pass

    def stop(*_: Any) -> Any:
        raise Stop

    class File(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return bytes(stop()) if at == "read" else super().read(size)

    decode(flac)
    (pid,) = pool.pids
    with pytest.raises(Stop):
        decode(File(flac), check=stop if at == "check" else None, progress=stop if at == "progress" else None)
    assert not running(pid)
    assert decode(flac).duration == 2.0


def test_a_file_on_which_libav_hangs_is_refused(
    pool: DecoderPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = DecoderPool(stall_seconds=1.0)
    monkeypatch.setattr(decoding, "DECODERS", impatient)
    with pytest.raises(InvalidAudio, match=r"SLEEP\.wav cannot be decoded: libav has hung for 1 s"):
        decode(harmful(tmp_path, "SLEEP"))
    assert impatient.pids == []


def test_a_hang_is_interrupted_by_cancellation(pool: DecoderPool, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    calls: list[float] = []

    def check() -> None:
        calls.append(time.monotonic())
        if len(calls) == 5:
            raise Stop

    with pytest.raises(Stop):
        decode(harmful(tmp_path, "SLEEP"), check=check)
    assert pool.pids == []


def test_no_more_processes_than_the_limit_run(pool: DecoderPool, flac: bytes) -> None:
    seen: list[int] = []

    def work(_: int) -> Decoded:
        return decode(flac, check=lambda: seen.append(len(pool.pids)))

    with ThreadPoolExecutor(6) as threads:
        assert all(decoded.duration == 2.0 for decoded in threads.map(work, range(30)))
    assert max(seen) == 2


def test_an_idle_process_ends_by_itself_and_the_next_file_starts_another(
    monkeypatch: pytest.MonkeyPatch, flac: bytes
) -> None:
    pool = DecoderPool(idle_seconds=0.5)
    monkeypatch.setattr(decoding, "DECODERS", pool)
    decode(flac)
    (pid,) = pool.pids
    until(lambda: not running(pid))
    assert decode(flac).duration == 2.0
    assert pool.pids != [pid]
    pool.close()
    assert pool.pids == []


PARENT = """
import os, sys
from whisper_api.engine.audio.decode import DECODERS, decode
decode(sys.argv[1])
print(*DECODERS.pids, flush=True)
if sys.argv[2] == "fork":
    read, write = os.pipe()
    if not os.fork():
        before = list(DECODERS.pids)
        decode(sys.argv[1])
        print(*DECODERS.pids, flush=True)
        os.write(write, str((before, DECODERS.pids)).encode())
        sys.exit()
    mine = DECODERS.pids
    before, theirs = eval(os.read(read, 1000))
    os.wait()
    decode(sys.argv[1])
    assert before == [] and len(theirs) == 1 and theirs != mine == DECODERS.pids, (before, theirs, mine)
if sys.argv[2] == "killed":
    os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("end", ["normal", "killed", "fork"])
def test_the_process_ends_with_its_parent_and_is_not_shared_with_a_forked_one(
    tmp_path: Path, flac: bytes, end: str
) -> None:
    (tmp_path / "a.flac").write_bytes(flac)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PARENT, tmp_path / "a.flac", end],
        capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    assert done.returncode == (-signal.SIGKILL if end == "killed" else 0), done.stderr
    assert done.stderr == ""
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == (2 if end == "fork" else 1)
    until(lambda: not any(map(running, pids)))


def test_a_process_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch, flac: bytes) -> None:
    monkeypatch.setattr(decoding, "DECODERS", DecoderPool())
    monkeypatch.setattr(process, "COMMAND", "raise SystemExit(3)")
    with pytest.raises(WhisperApiError, match="status 3 before it was ready"):
        decode(flac)
    monkeypatch.setattr(sys, "executable", "/does/not/exist")
    with pytest.raises(WhisperApiError, match="cannot be started: No such file"):
        decode(flac)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="writes to /dev/full")
def test_errors_cross_by_name(pool: DecoderPool, flac: bytes) -> None:
    class Full(AudioMemory):
        def temporary_file(self) -> IO[bytes]:
            return Path("/dev/full").open("wb", buffering=0)

    with pytest.raises(StorageFull, match="no room on the disk"):
        decode(flac, memory=Full(0))
    with pytest.raises(AudioTooLong, match=r"lasts 2\.0 s"):
        decode(flac, max_seconds=1.0)
    with pytest.raises(InvalidOption, match="there is no number 7") as raised:
        decode(flac, audio_track=7)
    assert raised.value.field == "audio_track"
    assert len(pool.pids) == 1


# ---- real files


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_an_index_that_claims_50_million_samples_is_refused_within_the_memory(tmp_path: Path) -> None:
    content = bytearray(encode(sine(16000, 1.0), 16000, "ipod", "aac"))
    claimed = 50_000_000
    for box, fields in ((b"stsz", (1, claimed)), (b"stts", (1, claimed)), (b"stsc", (1, 1, claimed, 1))):
        begin = content.index(box) + 8
        struct.pack_into(f">{len(fields)}I", content, begin, *fields)
    assert len(content) < 10_000
    pool = DecoderPool()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "DECODERS", pool)
        for attempt in (probe, decode):
            with pytest.raises(InvalidAudio):
                attempt(bytes(content))
        (pid,) = pool.pids
        status = Path(f"/proc/{pid}/status")
        if status.exists():
            peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            assert int(peak.split()[1]) * 1024 < 1.3e9
    pool.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_hours_of_silence_take_neither_memory_nor_time_of_this_process(tmp_path: Path) -> None:
    content = hours_of_silence(3)
    memory = AudioMemory(1 << 20, tmp_path)
    decode(content, stop_at=1.0)
    before, cpu = resident(), time.process_time()
    decoded = decode(content, memory=memory)
    assert decoded.duration == 3 * 3600
    assert resident() - before < 20e6
    assert time.process_time() - cpu < 3.0
    assert not np.any(decoded.audio[:: 3600 * 16000])
