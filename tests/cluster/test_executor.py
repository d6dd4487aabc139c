"""The executor of a cluster does what the interface says, whatever happens to its engines."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fakes import config_in, until

from cluster.loopback import SECRET, Loopback, environment
from cluster.running import DEADLINE, Watched, script
from whisper_api.cli.main import main
from whisper_api.cluster.draining import drain
from whisper_api.cluster.executor import RayExecutor
from whisper_api.cluster.runs import PIECE_BYTES
from whisper_api.errors import Canceled, EngineLost, InvalidAudio, ModelUnavailable, UnknownModel
from whisper_api.options import TranscriptionOptions
from whisper_api.voices import VoiceEmbedding, VoiceSample

pytestmark = pytest.mark.cluster


def text_of(watched: Watched) -> str:
    """The text of a job, once it has ended."""
    transcript = watched.end().transcript
    assert transcript is not None
    return transcript.text


def test_a_job_reports_and_returns_what_its_engine_does(executor: RayExecutor, tmp_path: Path) -> None:
    watched = Watched(executor, script(tmp_path, "say Hello."))
    assert watched.run().text == "Hello."
    assert [segment.text for part in watched.partial for segment in part.segments] == ["Hello."]
    assert watched.progress[-1].stage == "asr"


def test_recordings_and_voices_of_known_speakers_come_along(executor: RayExecutor, tmp_path: Path) -> None:
    audio = script(tmp_path, "speakers")
    (tmp_path / "speaker-0").write_text("first")
    (tmp_path / "speaker-1").write_text("second")
    voice = VoiceEmbedding(model="m", samples=(VoiceSample(seconds=1.0, vector=(1.0, 0.0)),))
    watched = Watched(executor, audio, known_speakers=("A", "B"), voices={"Zoe": voice})
    assert watched.run().text == "first second Zoe"


def test_a_large_upload_passes_in_pieces_and_arrives_whole(
    executor: RayExecutor, tmp_path: Path, loopback: Loopback
) -> None:
    content = os.urandom(2 * PIECE_BYTES + 12345)
    (tmp_path / "audio").write_bytes(content)
    assert Watched(executor, tmp_path / "audio").run().text == hashlib.sha256(content).hexdigest()
    assert loopback.left_over() == []


def test_errors_keep_their_class_and_message(executor: RayExecutor, tmp_path: Path) -> None:
    with pytest.raises(InvalidAudio, match="no sound"):
        Watched(executor, script(tmp_path, "fail no sound")).run()
    with pytest.raises(Exception, match="very odd") as caught:
        Watched(executor, script(tmp_path, "odd")).run()
    assert type(caught.value).__name__ == "Odd"


def test_a_canceled_job_ends_at_once(executor: RayExecutor, tmp_path: Path) -> None:
    watched = Watched(executor, script(tmp_path, "sleep 50", "say late")).start()
    until(lambda: watched.progress, "the job runs")
    watched.cancel.set()
    assert isinstance(watched.end().error, Canceled)
    before = Watched(executor, script(tmp_path, "sleep 50"))
    before.cancel.set()
    with pytest.raises(Canceled):
        before.run()


def test_a_missing_model_is_reported_and_the_job_goes_on_or_ends(executor: RayExecutor, tmp_path: Path) -> None:
    names: list[str] = []
    audio = script(tmp_path, "miss align-xx")
    assert Watched(executor, audio, missing=names.append).run().text == "without align-xx"
    assert names == ["align-xx"]

    def wait(name: str) -> None:
        raise LookupError(name)

    with pytest.raises(LookupError, match="align-xx"):
        Watched(executor, audio, missing=wait).run()


def test_engines_refuse_jobs_and_name_what_they_lack(executor: RayExecutor) -> None:
    executor.check(TranscriptionOptions(), None)
    with pytest.raises(ModelUnavailable, match="no model here"):
        executor.check(TranscriptionOptions(diarize=True), None)
    with pytest.raises(UnknownModel):
        executor.check(TranscriptionOptions(model="no-such"), None)
    assert executor.missing_models(TranscriptionOptions(), None) == ()
    assert executor.named_by_configuration(TranscriptionOptions())
    assert executor.enroll([b"12"]).vector == (1.0, 0.0)
    executor.download_model("base", threading.Event(), None)


def test_the_facts_are_those_of_the_engines(executor: RayExecutor) -> None:
    facts = executor.facts()
    assert (facts.device, facts.model) == ("cpu", "fake")
    assert [each.state for each in facts.engines] == ["ready", "ready"]
    assert len({each.node for each in facts.engines}) == 2
    assert all(each.version for each in facts.engines)


def test_jobs_spread_over_the_engines(executor: RayExecutor, tmp_path: Path) -> None:
    jobs = [
        Watched(executor, script(tmp_path / str(number), "sleep 0.5", "where"), job_id=str(number)).start()
        for number in range(2)
    ]
    assert len({text_of(each) for each in jobs}) == 2


@pytest.mark.parametrize("command", ["die", "break"])
def test_a_job_hears_of_the_end_of_its_engine_which_comes_back(
    executor: RayExecutor, tmp_path: Path, command: str
) -> None:
    with pytest.raises(EngineLost):
        Watched(executor, script(tmp_path, command)).run()
    # The other engine, or this one after its restart.
    assert Watched(executor, script(tmp_path, "say on")).run().text == "on"
    until(lambda: executor.engines().running == 2, "both run again")
    assert executor.engines().reason == ""


def test_a_device_that_is_lost_under_an_enrolment_ends_its_engine_alone(executor: RayExecutor) -> None:
    counts: list[int] = []
    executor.on_engines(counts.append)
    # Not DeviceLost, for which the front would end itself.
    with pytest.raises(EngineLost, match="the device has failed"):
        executor.enroll([b"break"])
    until(lambda: 1 in counts, "the engine is missed")
    until(lambda: executor.engines().running == 2, "it runs again")
    assert executor.enroll([b"12"]).vector == (1.0, 0.0)


def test_a_killed_engine_is_missed_at_once_and_started_again(executor: RayExecutor, tmp_path: Path) -> None:
    counts: list[int] = []
    executor.on_engines(counts.append)
    pid = int(Watched(executor, script(tmp_path, "where")).run().text)
    watched = [
        Watched(executor, script(tmp_path / str(number), "sleep 1", "where"), job_id=str(number)).start()
        for number in range(2)
    ]
    until(lambda: all(each.progress for each in watched), "both engines work")
    os.kill(pid, signal.SIGKILL)
    ended = [each.end() for each in watched]
    assert sorted(type(each.error).__name__ for each in ended) == ["EngineLost", "NoneType"]
    until(lambda: executor.engines().running == 2, "both run again")
    assert counts[0] == 2
    assert 1 in counts
    assert counts[-1] == 2


@pytest.mark.parametrize(
    ("address", "token", "said"), [(None, "f" * 64, "refuses the front's token"), ("silent", None, "not as the head")]
)
def test_a_front_says_why_it_cannot_join(
    loopback: Loopback,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    address: str | None,
    token: str | None,
    said: str,
) -> None:
    # With the right token and address, all other tests run.
    assert os.environ["RAY_AUTH_MODE"] == "token"
    if token is not None:
        monkeypatch.setenv(SECRET, token)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        other = f"127.0.0.1:{silent.getsockname()[1]}"
        config = config_in(
            tmp_path, executor="ray", ray_address=other if address else loopback.address, model="tiny.en", device="cpu"
        )
        stranger = RayExecutor(config, "engines:ScriptedEngine")

        def logged() -> list[str]:
            return [str(record.__dict__["reason"]) for record in caplog.records if record.message == "engines"]

        try:
            stranger._driver.start()  # noqa: SLF001 - preload() would wait for an engine
            until(lambda: said in stranger.engines().reason, "the reason is told")
            assert str(config.ray_address) in stranger.engines().reason
            assert stranger.engines().running == 0
            assert stranger.facts().engines == ()
            until(lambda: any(said in reason for reason in logged()), "the reason is logged")
            assert len(logged()) == 1
        finally:
            stranger.close()


def test_the_driver_process_is_started_again_and_jobs_wait_for_it(executor: RayExecutor, tmp_path: Path) -> None:
    process = executor._driver.pid  # noqa: SLF001 - only a test kills it
    assert process is not None
    running = Watched(executor, script(tmp_path / "running", "sleep 50")).start()
    until(lambda: running.progress, "the job runs")
    os.kill(process, signal.SIGKILL)
    assert isinstance(running.end().error, EngineLost)
    waiting = Watched(executor, script(tmp_path / "waiting", "say here")).start()
    assert waiting.end().transcript is not None
    until(lambda: executor.engines().running == 2, "both run again")


def test_a_machine_with_another_version_is_refused_until_it_is_replaced(
    executor: RayExecutor, loopback: Loopback, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "whisper_api-99.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: whisper-api\nVersion: 99.0\n")
    (other.parent / "sitecustomize.py").write_text(
        "import platform\nplatform.python_version_tuple = lambda: ('3', '99', '0')\n"
    )
    here = importlib.metadata.version("whisper-api") if _installed() else "0+source"
    old = loopback.add(first_path=other.parent)
    try:
        until(lambda: any(each.state == "refused" for each in executor.facts().engines), "the machine is refused")
        (refused,) = (each for each in executor.facts().engines if each.state == "refused")
        assert "99.0" in refused.reason
        assert here in refused.reason
        assert "Python 3.99" in refused.reason
        assert "install the same" in refused.reason
        assert "99.0" in executor.engines().reason
        assert executor.engines().running == 2
        assert Watched(executor, script(tmp_path, "say on")).run().text == "on"
        assert drain(loopback.address, refused.node, DEADLINE, lambda said: None)
    finally:
        loopback.kill(old)
    new = loopback.add()
    try:
        until(lambda: executor.engines().running == 3, "the replaced machine is used")
        until(lambda: executor.engines().reason == "", "the old machine is forgotten")
    finally:
        loopback.kill(new)
    until(lambda: executor.engines().wanted == 2, "the machine is missed")


def test_a_worker_joins_and_is_drained_without_losing_its_job(
    loopback: Loopback, executor: RayExecutor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {each.name for each in executor.facts().engines}
    command = ["-m", "whisper_api", "worker", "--address", loopback.address, "--cpus", "1", "--no-check"]
    process = subprocess.Popen(
        [sys.executable, *command, "--tmp-dir", str(tmp_path / "worker")],
        env={**os.environ, **environment()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until(lambda: executor.engines().running == 3, "the worker's engine runs")
        (joined,) = (each for each in executor.facts().engines if each.name not in before)
        jobs = [
            Watched(executor, script(tmp_path / str(number), "sleep 2", "say done"), job_id=str(number)).start()
            for number in range(3)
        ]
        until(lambda: all(each.progress for each in jobs), "every engine works")
        assert main(["cluster", "drain", joined.node, "--address", loopback.address, "--wait", f"{DEADLINE}"]) == 0
        assert "has left the cluster" in capsys.readouterr().err
        assert [each.end().error for each in jobs] == [None, None, None]
        assert process.wait(DEADLINE) is not None
        until(lambda: executor.engines().wanted == 2, "the machine is forgotten")
        assert main(["cluster", "drain", "nobody", "--address", loopback.address]) == 2
        assert "no machine has this name" in capsys.readouterr().err
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _installed() -> bool:
    try:
        importlib.metadata.version("whisper-api")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
