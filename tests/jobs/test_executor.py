"""Jobs on the real engine: what they give, how they are stopped, what is refused, and an engine that fails."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import wave
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import DEADLINE, config_in, ended, idle, new_service, text_of, until
from filelock import FileLock
from hub_server import REPO, serving
from msgspec.structs import replace

from whisper_api.config import Config
from whisper_api.engine.models.catalog import CATALOGUE
from whisper_api.engine.models.store import DownloadProgress
from whisper_api.engine.whisper.onnx.model import OnnxDecode
from whisper_api.errors import Canceled, EngineClosed, ModelUnavailable, UnknownModel
from whisper_api.jobs.local_executor import EXECUTORS, LocalExecutor, _Run
from whisper_api.jobs.service import JobService, Submission
from whisper_api.schema import PartialSegments, Progress, TranscriptionOptions
from whisper_api.store.jobs import DATABASE_NAME, Job, JobStore

pytestmark = pytest.mark.models

QUICK = TranscriptionOptions(language="en", align=False, diarize=False)


@pytest.fixture
def config(tmp_path: Path, models_dir: Path, base_model_dir: Path) -> Config:
    return config_in(tmp_path, models_dir=models_dir, device="cpu", model="base", language="en", preload_models=False)


@pytest.fixture
def executor(config: Config) -> Iterator[LocalExecutor]:
    executor = LocalExecutor(config)
    yield executor
    executor.close()


@pytest.fixture
def service(config: Config, executor: LocalExecutor) -> Iterator[JobService]:
    service = JobService(config, JobStore(config.data_dir / DATABASE_NAME), executor)
    service.start()
    yield service
    service.close()


def excerpt(source: Path, target: Path, seconds: float, times: int = 1) -> None:
    """Write the beginning of a recording, over and over."""
    with wave.open(str(source)) as call, wave.open(str(target), "wb") as part:
        part.setparams(call.getparams())
        frames = call.readframes(int(seconds * call.getframerate()))
        for _ in range(times):
            part.writeframes(frames)


def submit_call(
    service: JobService, call: Path, seconds: float, times: int = 1, options: TranscriptionOptions = QUICK
) -> str:
    with service.reserve("") as place:
        place.directory.mkdir()
        excerpt(call, place.directory / "audio", seconds, times)
        size = (place.directory / "audio").stat().st_size
        submission = Submission(
            job_id=place.job_id,
            owner="",
            options=options,
            output_format="txt",
            audio_bytes=size,
            audio_seconds=seconds * times,
        )
        return service.submit(submission, place).job_id


def job(options: TranscriptionOptions = QUICK) -> Job:
    return Job(job_id="a", owner="", options=options, output_format="txt", audio_bytes=1, created_at=0.0)


def run(executor: LocalExecutor, audio: Path, on_progress: Callable[[Progress], None] = lambda progress: None) -> str:
    return executor.run(
        job(),
        audio,
        on_progress=on_progress,
        on_partial=lambda stretch: None,
        on_missing_model=lambda name: None,
        cancel=threading.Event(),
    ).text


def leases(executor: LocalExecutor) -> list[int]:
    assert executor._engine is not None
    return [model.leases for model in executor._engine.models.resident()]


def test_a_job_gives_its_text_and_the_next_one_does_after_a_cancel_by_force(
    service: JobService, executor: LocalExecutor, sample_call: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = 0
    decode = OnnxDecode.run

    def counted(operation: OnnxDecode, inputs: Sequence[Any]) -> Sequence[Any]:
        nonlocal batches
        batches += 1
        return decode(operation, inputs)

    monkeypatch.setattr(OnnxDecode, "run", counted)
    first = submit_call(service, sample_call, 30.0)
    assert ended(service, first).status == "Completed"
    text = text_of(service, first)
    assert "New Jersey" in text
    assert "Chicago" in text
    assert service.health().ready
    # Four minutes of it are many work items; it is stopped between two of them.
    long, short = submit_call(service, sample_call, 30.0, 8), submit_call(service, sample_call, 8.0)
    done = batches
    until(lambda: batches >= done + 2)
    status = service.status(long, None)
    assert status.stage == "asr"
    assert status.eta_seconds
    before = batches
    service.cancel(long, None, force=True)
    assert service.status(long, None).status == "Canceled"
    assert batches <= before + 2
    assert not (tmp_path / "uploads" / long).exists()
    assert ended(service, short).status == "Completed"
    assert text_of(service, short)
    idle(service)
    assert set(leases(executor)) == {0}


def test_a_job_tells_its_text_as_it_goes_on_and_knows_the_speakers_beside_its_upload(
    executor: LocalExecutor, sample_call: Path, ecapa_path: Path, tmp_path: Path
) -> None:
    excerpt(sample_call, tmp_path / "audio", 30.0)
    # By the call's .rttm only one of the two speaks there.
    with wave.open(str(sample_call)) as call, wave.open(str(tmp_path / "speaker-1"), "wb") as part:
        part.setparams(call.getparams())
        call.setpos(int(21.9 * call.getframerate()))
        part.writeframes(call.readframes(int(5.9 * call.getframerate())))
    with wave.open(str(tmp_path / "speaker-0"), "wb") as silent:
        silent.setparams((1, 2, 16_000, 0, "NONE", ""))
        silent.writeframes(bytes(2 * 16_000 * 3))
    told: list[PartialSegments] = []
    transcript = executor.run(
        replace(job(TranscriptionOptions(language="en", diarize=True)), known_speakers=("Silent", "Sheila")),
        tmp_path / "audio",
        on_progress=lambda progress: None,
        on_partial=told.append,
        on_missing_model=lambda name: None,
        cancel=threading.Event(),
    )
    # Told once more when it turns out that the alignment model cannot be had, and words get their times another way.
    assert {partial.index for partial in told} == {0}
    assert all("New Jersey" in " ".join(segment.text for segment in partial.segments) for partial in told)
    assert transcript.speakers == ("SPEAKER_00", "Sheila")
    assert any("'Silent'" in warning for warning in transcript.warnings)


def test_the_models_are_resident_before_the_first_job(config: Config, sample_call: Path, tmp_path: Path) -> None:
    executor = LocalExecutor(replace(config, preload_models=True))
    executor.preload()
    facts = executor.facts()
    assert (facts.device, facts.model, facts.compute_type) == ("cpu", "base", "int8")
    assert facts.resident_models >= 1
    assert facts.resident_bytes > 10_000_000
    heard: list[Progress] = []
    excerpt(sample_call, tmp_path / "audio", 8.0)
    assert run(executor, tmp_path / "audio", heard.append)
    assert [each.stage for each in heard][-1] == "done"
    assert executor.facts().resident_models == facts.resident_models
    executor.close()


def test_what_only_some_jobs_need_is_loaded_after_the_whisper_model(config: Config, ecapa_path: Path) -> None:
    executor = LocalExecutor(replace(config, preload_models=True))
    executor.preload()
    assert executor.facts().resident_models == 1
    executor.warm_up()
    assert executor.facts().resident_models > 1
    executor.close()


def test_models_are_not_loaded_when_nobody_asked_for_it(config: Config) -> None:
    executor = EXECUTORS["local"](config)
    executor.preload()
    assert executor.facts().resident_models == 0
    executor.close()


def test_an_engine_that_fails_is_replaced(executor: LocalExecutor, sample_call: Path, tmp_path: Path) -> None:
    excerpt(sample_call, tmp_path / "audio", 8.0)
    text = run(executor, tmp_path / "audio")
    assert executor._engine is not None
    # As its thread does when it fails.
    executor._engine._worker.close()
    with pytest.raises(EngineClosed):
        run(executor, tmp_path / "audio")
    assert run(executor, tmp_path / "audio") == text


def test_a_closed_executor_makes_no_engine(executor: LocalExecutor, sample_call: Path) -> None:
    executor.close()
    executor.close()
    with pytest.raises(EngineClosed):
        run(executor, sample_call)
    with pytest.raises(EngineClosed):
        executor.preload()
    assert executor._engine is None


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [None, "auto", "base", "tiny.en", "large-v3", "large", "turbo"])
def test_models_of_the_catalogue_are_served(executor: LocalExecutor, model: str | None) -> None:
    executor.check(TranscriptionOptions(model=model), None)


@pytest.mark.parametrize(
    "model",
    [
        "lagre-v3",
        "somebody/faster-whisper-base",
        "/etc",
        "../models_cache/base",
        ".",
        "~",
        "ecapa",
        "align-en",
        "é" * 999,
    ],
)
def test_anything_else_is_not(executor: LocalExecutor, model: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        executor.check(TranscriptionOptions(model=model), None)
    assert len(str(caught.value)) < 600


def test_a_name_with_a_slip_is_told_what_was_meant(executor: LocalExecutor) -> None:
    with pytest.raises(UnknownModel, match="large-v3"):
        executor.check(TranscriptionOptions(model="lagre-v3"), None)


def test_the_configured_model_is_served_whatever_it_is(config: Config) -> None:
    executor = LocalExecutor(replace(config, model="/models/mine"))
    executor.check(TranscriptionOptions(model="/models/mine"), None)
    assert executor.model_name(TranscriptionOptions()) == "/models/mine"
    with pytest.raises(UnknownModel):
        executor.check(TranscriptionOptions(model="/models/other"), None)


def test_names_are_told_as_the_catalogue_has_them(config: Config) -> None:
    executor = LocalExecutor(replace(config, model="auto"))
    assert executor.model_name(TranscriptionOptions(model="turbo")) == "large-v3-turbo"
    assert executor.model_name(TranscriptionOptions()) == "base"
    assert executor.device == "cpu"
    assert LocalExecutor(replace(config, device="cuda:99")).device == "cuda:99"


def test_speakers_asked_for_by_name_need_a_model(
    config: Config, executor: LocalExecutor, ecapa_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("whisper_api.engine.models.files.cached_snapshot", lambda *ignored: None)
    asked = TranscriptionOptions(diarize=True)
    executor.check(asked, None)
    bare = LocalExecutor(replace(config, models_dir=tmp_path / "empty"))
    with pytest.raises(ModelUnavailable, match="whisper-api models pull campplus"):
        bare.check(asked, None)
    bare.check(asked, "hf_token_of_the_caller")
    bare.check(TranscriptionOptions(), None)
    LocalExecutor(replace(config, models_dir=tmp_path / "empty", hf_token="x")).check(asked, None)
    # As long as models are being fetched for all jobs.
    loading = LocalExecutor(replace(config, models_dir=tmp_path / "empty", preload_models=True))
    loading.check(asked, None)


def test_a_model_that_is_not_here_is_downloaded_apart_from_its_job(
    config: Config, base_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whisper_api.engine.models.files.cached_snapshot", lambda *ignored: None)
    executor = LocalExecutor(replace(config, models_dir=tmp_path / "models"))
    wanted = TranscriptionOptions(model="base")
    assert executor.missing_models(wanted, None)[0] == "base"
    assert not (tmp_path / "models").exists()
    canceled = threading.Event()
    canceled.set()
    # While another process or thread holds the lock, so that nothing can be fetched.
    lock = tmp_path / "models" / ".locks" / "whisper--base.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock):
        with pytest.raises(Canceled):
            executor.download_model("base", canceled, None)
        waiting = LocalExecutor(replace(config, models_dir=tmp_path / "models"))
        ends: list[BaseException] = []

        def download() -> None:
            try:
                waiting.download_model("base", threading.Event(), None)
            except BaseException as error:
                ends.append(error)

        thread = threading.Thread(target=download)
        thread.start()
        waiting.close()
        thread.join(DEADLINE)
        assert [type(error) for error in ends] == [EngineClosed]
    (tmp_path / "models" / "whisper").mkdir(parents=True, exist_ok=True)
    (tmp_path / "models" / "whisper" / "base").symlink_to(base_model_dir)
    assert "base" not in executor.missing_models(wanted, None)
    # Only what can be downloaded is missing: other names are the job's own errors.
    assert LocalExecutor(replace(config, model="/nowhere/at/all")).missing_models(QUICK, None) == ()


def test_a_model_that_the_disk_has_no_room_for_is_refused_before_its_job_is_accepted(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whisper_api.engine.models.files.cached_snapshot", lambda *ignored: None)
    executor = LocalExecutor(replace(config, models_dir=tmp_path / "models"))
    executor.check(TranscriptionOptions(model="large-v3"), None)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=10**12, used=0, free=10**9))
    with pytest.raises(ModelUnavailable, match=r"large-v3 needs 3\.. GB more .* 1\.0 GB are free"):
        executor.check(TranscriptionOptions(model="large-v3"), None)


@pytest.mark.parametrize("language", ["en", "auto"])
def test_a_job_whose_alignment_model_is_downloaded_keeps_no_other_job_waiting(
    language: str, config: Config, sample_call: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One job at a time may run. With ``auto`` the language, and so the model, is known only once the job has run."""
    models = tmp_path / "models"
    models.mkdir()
    (models / "whisper").symlink_to(config.models_dir / "whisper", target_is_directory=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    wanted = TranscriptionOptions(language=language, diarize=False)
    with serving() as hub:
        hub.drip_after = 1_000_000
        entry = dataclasses.replace(
            CATALOGUE["align-en"], url=f"{hub.url}/cdn/{REPO}/model.bin", required=("model.bin",), files=()
        )
        monkeypatch.setitem(CATALOGUE, entry.name, entry)
        with contextlib.closing(new_service(tmp_path, LocalExecutor(replace(config, models_dir=models)))) as service:
            service.start()
            first = submit_call(service, sample_call, 20.0, options=wanted)
            until(lambda: any(part.stat().st_size for part in models.rglob("model.bin.part")), "the download hangs")
            second = submit_call(service, sample_call, 8.0)
            assert ended(service, second).status == "Completed"
            waiting = service.status(first, None)
            assert (waiting.status, waiting.stage) == ("Queued", "download")
            assert not (models / entry.directory).exists()
            hub.drip_after = None
            done = ended(service, first)
    assert done.status == "Completed"
    assert (models / entry.directory / "model.bin").is_file()
    # What the hub has is no alignment model, so that loading it fails.
    assert any("Whisper's cross-attention" in warning for warning in done.warnings)
    assert len(hub.transfers("model.bin")) <= 2


# --- downloads ----------------------------------------------------------------------------------------------------


def test_a_download_is_progress_of_all_jobs_and_ends_with_the_job_that_began_it(executor: LocalExecutor) -> None:
    step = DownloadProgress("large-v3", "model.bin", 43, 100, "hub")
    heard: list[str] = []
    canceled = threading.Event()
    begun, done = threading.Event(), threading.Event()

    def other() -> None:
        with executor._watched(_Run(lambda: heard.append("other"), threading.Event())):
            begun.set()
            done.wait(DEADLINE)

    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(DEADLINE)
    with executor._watched(_Run(lambda: heard.append("own"), canceled)):
        executor._on_download(step)
        assert sorted(heard) == ["other", "own"]
        assert executor.activity == "fetching large-v3 (43%)"
        canceled.set()
        with pytest.raises(Canceled):
            executor._on_download(step)
        executor.close()
        with pytest.raises(EngineClosed):
            executor._on_download(step)
    done.set()
    thread.join()
    assert executor.activity == ""
