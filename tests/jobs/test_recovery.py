"""Processes that go down while jobs run: none is lost, and one that brings the process down is not tried for ever."""

from __future__ import annotations

import faulthandler
import signal
import subprocess
import sys
from pathlib import Path

import fakes
import pytest
from fakes import new_service, submit, transcript, uploads

from whisper_api.jobs import recovery
from whisper_api.jobs.recovery import FaultLog, end_of_last_process, note_kills, note_start, note_stop, recover
from whisper_api.schema import TranscriptionOptions
from whisper_api.store.jobs import Job, JobStore

KILLED = -signal.SIGKILL
EXITED = 7


def run(directory: Path, slots: int = 1) -> int:
    """Run a service in a process of its own until all is done, or it goes down; what it ended with."""
    done = subprocess.run(
        [sys.executable, fakes.__file__, str(directory), str(slots)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode in (0, EXITED) or done.returncode < 0, done.stderr
    return done.returncode


def submit_all(directory: Path, **prompts: str) -> dict[str, str]:
    """Submit a job for each name, which is also its text; name to id."""
    service = new_service(directory)
    job_ids = {name: submit(service, name, prompt=prompt) for name, prompt in prompts.items()}
    service.close()
    return job_ids


def states(directory: Path, job_ids: dict[str, str]) -> dict[str, str]:
    """Name to state; a Completed job must have the right text."""
    service = new_service(directory)
    found: dict[str, str] = {}
    for name, job_id in job_ids.items():
        job = service.store.get(job_id)
        assert job is not None
        found[name] = job.state
        if job.state == "Completed":
            assert service.result(job_id, None)[1].text == name
    service.close()
    return found


# --- whole processes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["segfault", "abort"])
def test_a_job_that_crashes_the_process_twice_fails_and_the_others_are_done(tmp_path: Path, way: str) -> None:
    job_ids = submit_all(tmp_path, before="", poison=way, after="")
    crash = {"segfault": -signal.SIGSEGV, "abort": -signal.SIGABRT}[way]
    assert [run(tmp_path) for _ in range(3)] == [crash, crash, 0]
    assert states(tmp_path, job_ids) == {"before": "Completed", "poison": "Failed", "after": "Completed"}
    service = new_service(tmp_path)
    assert "twice" in (service.status(job_ids["poison"], None).error or "")
    service.close()
    assert uploads(tmp_path) == []
    assert len(list((tmp_path / "data").glob("fault.*.log"))) == 2


def test_jobs_that_ran_beside_a_crash_are_not_taken_for_it(tmp_path: Path) -> None:
    job_ids = submit_all(tmp_path, one="wait", poison="segfault together", two="wait", three="")
    assert [run(tmp_path, slots=3) for _ in range(3)] == [-signal.SIGSEGV, -signal.SIGSEGV, 0]
    assert states(tmp_path, job_ids) == {
        "one": "Completed",
        "poison": "Failed",
        "two": "Completed",
        "three": "Completed",
    }
    assert uploads(tmp_path) == []


def test_a_job_that_ends_the_process_without_a_trace_holds_up_nobody_and_fails_in_the_end(tmp_path: Path) -> None:
    job_ids = submit_all(tmp_path, poison="exit", other="")
    # From the second time on it waits behind the others.
    ends = [run(tmp_path) for _ in range(3)]
    assert states(tmp_path, job_ids) == {"poison": "Processing", "other": "Completed"}
    ends += [run(tmp_path) for _ in range(recovery.MAX_INTERRUPTIONS - 2)]
    assert ends == [EXITED] * recovery.MAX_INTERRUPTIONS + [0]
    assert states(tmp_path, job_ids)["poison"] == "Failed"
    assert uploads(tmp_path) == []


def test_a_process_that_is_killed_once_loses_nothing(tmp_path: Path) -> None:
    job_ids = submit_all(tmp_path, first="", victim="kill once", last="")
    assert [run(tmp_path) for _ in range(2)] == [KILLED, 0]
    assert set(states(tmp_path, job_ids).values()) == {"Completed"}
    assert uploads(tmp_path) == []
    assert not list((tmp_path / "data").glob("fault.*.log"))


def test_a_job_is_not_given_up_because_the_process_was_killed_ten_times(tmp_path: Path) -> None:
    job_ids = submit_all(tmp_path, victim="kill")
    assert [run(tmp_path) for _ in range(10)] == [KILLED] * 10
    # Ten times it was taken up again.
    assert states(tmp_path, job_ids) == {"victim": "Processing"}


# --- evidence -----------------------------------------------------------------------------------------------------


def processing(store: JobStore, job_id: str) -> None:
    """Add a job and have it run."""
    store.add(
        Job(
            job_id=job_id,
            owner="",
            options=TranscriptionOptions(),
            output_format="txt",
            audio_bytes=1,
            created_at=0.0,
        )
    )
    assert store.claim(job_id, 1.0)


def counted(store: JobStore, job_id: str) -> tuple[str, int, int]:
    job = store.get(job_id)
    assert job is not None
    return job.state, job.crashes, job.interruptions


def test_a_process_that_was_told_to_stop_is_nobodys_fault(store: JobStore) -> None:
    note_start(store)
    assert end_of_last_process(store, "") == "kill"
    note_stop(store)
    assert end_of_last_process(store, "") == "stop"
    assert end_of_last_process(store, "Fatal Python error: Aborted") == "crash"
    note_start(store)
    assert end_of_last_process(store, "") == "kill"


def test_a_machine_that_was_started_again_is_nobodys_fault(store: JobStore) -> None:
    note_start(store)
    store.set_fact(recovery.BOOT_ID, "another")
    assert end_of_last_process(store, "") == "reboot"


def test_a_process_killed_for_its_memory_has_crashed(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = 3
    monkeypatch.setattr(recovery, "_kills", lambda: kills)
    note_start(store)
    assert end_of_last_process(store, "") == "kill"
    kills = 4
    assert end_of_last_process(store, "") == "crash"
    # Somebody else's end, before a job began, is no evidence against it.
    note_kills(store)
    assert end_of_last_process(store, "") == "kill"


@pytest.mark.skipif(not Path("/proc/vmstat").exists(), reason="no /proc here")
def test_the_kernel_tells_of_its_kills() -> None:
    assert recovery._kills() >= 0
    assert len(recovery._boot_id()) == 36


def test_a_fault_while_an_upload_is_looked_at_is_no_jobs(store: JobStore) -> None:
    note_start(store)
    fault = """Fatal Python error: Segmentation fault

Thread 0x00007f1 (most recent call first):
  File "/x/whisper_api/jobs/worker.py", line 1 in run_once

Current thread 0x00007f2 (most recent call first):
  File "/x/whisper_api/engine/audio/decode.py", line 1 in probe
  File "/x/whisper_api/server/routes/transcription.py", line 1 in _length

Thread 0x00007f3 (most recent call first):
  File "/x/threading.py", line 1 in wait
"""
    assert end_of_last_process(store, fault) == "elsewhere"
    # A native thread, while both a job and an upload are decoded.
    assert end_of_last_process(store, fault.replace("Current thread", "Thread")) == "kill"
    alone = fault.replace("Current thread", "Thread").replace("engine/audio/decode.py", "server/uploads/storing.py")
    assert end_of_last_process(store, alone) == "crash"


# A service runs a job when another thread of the process ends it by a fault.
CRASH = """
import ctypes, io, resource, sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fakes import FakeExecutor, config_in, new_service, running, submit
from whisper_api.engine.audio import decode
from whisper_api.jobs.preload import Preload
from whisper_api.schema import TranscriptionOptions
from whisper_api.server.uploads import submitting
from whisper_api.server.uploads.storing import StoredFile

def crash(*args, **kwargs):
    ctypes.string_at(0)

upload = StoredFile(Path(sys.argv[2]))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
upload.path.write_bytes(b"RIFF")
service = new_service(Path(sys.argv[2]), FakeExecutor(held=True))
service.start()
running(service, submit(service, owner="ada"))
if sys.argv[3] == "upload":
    # The real look at an upload, and in it the decoder comes down.
    decode.opened = crash
    config = config_in(Path(sys.argv[2]))
    threading.Thread(target=submitting._length, args=(config, upload, None, TranscriptionOptions())).start()
elif sys.argv[3] == "preload":
    executor = FakeExecutor()
    executor.preload = crash
    Preload(executor).start()
else:
    service._deps.executor.run = crash
    service._deps.executor.release()
    service.cancel(service.store.in_state("Processing")[0].job_id, None, force=True)
    submit(service, owner="ada")
threading.Event().wait(60)
"""


@pytest.mark.parametrize(("where", "crashes"), [("upload", 0), ("preload", 0), ("job", 1)])
def test_only_a_fault_in_the_work_on_jobs_is_a_jobs(tmp_path: Path, where: str, crashes: int) -> None:
    tests = Path(fakes.__file__).parent
    done = subprocess.run([sys.executable, "-c", CRASH, tests, tmp_path, where], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGSEGV, done.stderr
    service = new_service(tmp_path)
    end = end_of_last_process(service.store, FaultLog(tmp_path / "data").last())
    assert end == ("crash" if crashes else "elsewhere")
    (job,) = service.store.in_state("Processing")
    recover(service.store, end, 2.0)
    assert counted(service.store, job.job_id) == ("Queued", crashes, 0)
    service.close()


@pytest.mark.parametrize("end", ["stop", "reboot", "elsewhere"])
def test_without_evidence_nothing_is_counted(store: JobStore, end: recovery.End) -> None:
    processing(store, "a")
    for _ in range(5):
        assert recover(store, end, 2.0).requeued == ("a",)
        assert counted(store, "a") == ("Queued", 0, 0)
        store.claim("a", 3.0)


def test_crashes_are_counted_to_two(store: JobStore) -> None:
    processing(store, "a")
    assert recover(store, "crash", 2.0).requeued == ("a",)
    assert counted(store, "a") == ("Queued", 1, 0)
    store.claim("a", 3.0)
    assert recover(store, "stop", 4.0).requeued == ("a",)
    store.claim("a", 5.0)
    assert recover(store, "crash", 6.0).failed == ("a",)
    assert counted(store, "a")[0] == "Failed"


def test_interruptions_are_counted_to_twelve_and_from_the_second_on_cost_the_place(store: JobStore) -> None:
    for job_id in "ab":
        processing(store, job_id)
        store.requeue(job_id)
    order = []
    for _ in range(12):
        store.claim("a", 3.0)
        recovered = recover(store, "kill", 2.0)
        order.append(store.queued())
    assert order == [["a", "b"], *[["b", "a"]] * 10, ["b"]]
    assert recovered.failed == ("a",)


def test_only_running_jobs_are_looked_at_and_they_keep_their_place(store: JobStore) -> None:
    for job_id in "abcd":
        processing(store, job_id)
    store.requeue("b")
    store.complete("d", transcript("x"), 2.0)
    assert recover(store, "crash", 2.0).requeued == ("a", "c")
    assert store.queued() == ["a", "b", "c"]
    assert counted(store, "b") == ("Queued", 0, 0)
    assert recover(store, "crash", 2.0) == recovery.Recovered((), ())


# --- the log of faults --------------------------------------------------------------------------------------------


def test_what_a_fault_left_is_kept_for_a_while(tmp_path: Path) -> None:
    for number in range(6):
        log = FaultLog(tmp_path)
        assert log.last() == (f"fault {number - 1}" if number else "")
        log.begin()
        log.close()
        (tmp_path / "fault.log").write_text(f"fault {number}")
    kept = sorted(tmp_path.glob("fault.*.log"))
    assert [path.read_text() for path in kept] == ["fault 2", "fault 3", "fault 4"]
    assert (tmp_path / "fault.log").stat().st_mode & 0o077 == 0


def test_whoever_had_faults_told_has_them_told_again(tmp_path: Path) -> None:
    before = faulthandler.is_enabled()
    log = FaultLog(tmp_path)
    log.begin()
    assert faulthandler.is_enabled()
    log.close()
    assert faulthandler.is_enabled() == before
    log.close()
    assert log.last() == ""


def test_a_directory_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    log = FaultLog(tmp_path / "missing")
    log.begin()
    assert log.last() == ""
    log.close()
