"""An engine, server or client made before a fork works in the child, or raises ForkedProcess at once; none hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# Runs in an interpreter of its own. A child that hangs is ended by its alarm, which shows in its status.
PRELUDE = """
import os, signal, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of a fork beside threads

def child(name, work, end):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            print(name, work(), flush=True)
        except BaseException as error:
            print(name, type(error).__name__, error, flush=True)
        end(3)
    _, status = os.waitpid(pid, 0)
    print(name, "ended with", os.waitstatus_to_exitcode(status), flush=True)
"""


def run(script: str, *arguments: object) -> dict[str, str]:
    """The lines that a script prints, by their first word; the line ``NAME ended with ...`` is under ``NAME end``."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, str] = {}
    for line in done.stdout.splitlines():
        name, _, text = line.partition(" ")
        if text.startswith("ended with "):
            name, text = f"{name} end", text.removeprefix("ended with ")
        told[name] = text
    return told


ENGINE = """
from whisper_api import Engine, TranscriptionOptions
models_dir, audio = sys.argv[1:]
options = TranscriptionOptions(language="en", diarize=False, align=False, beam_size=1)
engine = Engine(device="cpu", model="tiny.en", models_dir=models_dir, offline=True)

def use():
    return engine.transcribe(audio, options).text.replace("\\n", " ")
"""


@pytest.fixture(scope="module")
def told(models_dir: Path, tiny_en_model_dir: Path, short_call: Path) -> dict[str, str]:
    """What an engine does in children and in pools of forked processes, before the parent uses it and afterwards."""
    script = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from whisper_api import ForkedProcess

def work(number):
    return use()

def pool(processes):
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork"))

threads = threading.active_count()
child("first", use, sys.exit)
child("second", use, os._exit)
with pool(2) as processes:
    texts = set(processes.map(work, range(3)))
print("threads", threads)
print("pool", *texts)
print("parent", use())
with pool(1) as processes:
    try:
        processes.submit(work, 0).result(60)
    except ForkedProcess as error:
        print("error", error)
print("afterwards", use())
"""
    return run(ENGINE + script, models_dir, short_call)


@pytest.mark.models
def test_an_engine_that_was_not_used_before_the_fork_works_in_every_child(told: dict[str, str]) -> None:
    assert told["threads"] == "1"
    assert "New Jersey" in told["parent"]
    assert told["first"] == told["second"] == told["parent"]
    assert told["first end"] == told["second end"] == "3"


@pytest.mark.models
def test_a_pool_of_forked_processes_works_with_an_engine_made_before(told: dict[str, str]) -> None:
    assert told["pool"] == told["parent"]


@pytest.mark.models
def test_the_error_of_a_forked_pool_reaches_the_caller(told: dict[str, str]) -> None:
    assert told["error"].startswith("models were used in process ")
    assert told["afterwards"] == told["parent"]


@pytest.mark.models
def test_an_engine_that_was_used_before_the_fork_says_at_once_that_it_cannot_be_used(
    models_dir: Path, tiny_en_model_dir: Path, ecapa_path: Path, short_call: Path
) -> None:
    script = """
import threading
speakers = TranscriptionOptions(language="en", diarize=True, align=False, beam_size=1)

def drop():
    global engine
    engine.close()
    del engine
    import gc
    return f"dropped {gc.collect() >= 0}"

def make():
    return Engine(device="cpu", model="tiny.en", models_dir=models_dir, offline=True)

before = engine.transcribe(audio, speakers).text
child("transcribe", use, sys.exit)
child("transcribe_too", use, os._exit)
child("preload", engine.preload, sys.exit)
child("rest", engine.preload_rest, os._exit)
child("another", make, sys.exit)
child("nothing", lambda: "nothing", sys.exit)
child("nothing_too", lambda: "nothing", os._exit)
child("drop", drop, sys.exit)
child("drop_too", drop, os._exit)

# The fork happens while threads of the parent work and hold locks.
busy = threading.Thread(target=lambda: engine.transcribe(audio, speakers))
busy.start()
for number, end in enumerate((sys.exit, os._exit)):
    child(f"busy{number}", use, end)
    child(f"closing{number}", engine.close, end)
busy.join()
print("parent", engine.transcribe(audio, speakers).text == before)
"""
    told = run(ENGINE + script, models_dir, short_call)
    assert told["parent"] == "True"
    assert {text for name, text in told.items() if name.endswith(" end")} == {"3"}
    busy = [f"busy{number}" for number in range(2)]
    for name in ("transcribe", "transcribe_too", "preload", "rest", "another", *busy):
        assert told[name].startswith("ForkedProcess models were used in process "), told[name]
        assert "worker_process_init" in told[name]
    assert {told["nothing"], told["nothing_too"]} == {"nothing"}
    assert {told["drop"], told["drop_too"]} == {"dropped True"}
    assert {told[f"closing{number}"] for number in range(2)} == {"None"}
