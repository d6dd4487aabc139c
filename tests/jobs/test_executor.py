"""The executor on the real engine: results, cancellation, refused options, downloads and an engine that fails."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
import wave
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import DEADLINE, config_in, ended, idle, new_service, text_of, until
from filelock import FileLock
from hub_server import REPO, Hub, serving
from msgspec.structs import replace
from pretended_gpu import pretend_gpus

from whisper_api import Engine
from whisper_api.config import Config
from whisper_api.engine import engine as engine_module
from whisper_api.engine.models.catalog import CATALOGUE
from whisper_api.engine.models.entry import Entry
from whisper_api.engine.whisper.onnx.model import OnnxDecode
from whisper_api.errors import Canceled, EngineClosed, ModelUnavailable, UnknownModel
from whisper_api.jobs.admission import Submission
from whisper_api.jobs.local_executor import EXECUTORS, LocalExecutor
from whisper_api.jobs.service import JobService
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import PartialSegments, Progress
from whisper_api.store.jobs import DATABASE_NAME, JobStore
from whisper_api.store.rows import Job

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
    """Write the beginning of a recording so many times in a row."""
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


@contextlib.contextmanager
def slow_alignment_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hub, Entry]]:
    """A hub that sends most of the English alignment model at once, and the rest byte by byte."""
    with serving() as hub:
        hub.drip_after = 1_000_000
        url = f"{hub.url}/cdn/{REPO}/model.bin"
        entry = dataclasses.replace(CATALOGUE["align-en"], url=url, required=("model.bin",), files=())
        monkeypatch.setitem(CATALOGUE, entry.name, entry)
        yield hub, entry


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    """The engines that are made from now on."""
    made: list[Engine] = []

    class Recorded(Engine):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            made.append(self)

    monkeypatch.setattr(engine_module, "Engine", Recorded)
    return made


def test_a_job_that_is_canceled_by_force_stops_between_two_work_items_and_the_next_job_runs(
    engines: list[Engine],
    service: JobService,
    sample_call: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
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
    # Four minutes of audio are many work items.
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
    (engine,) = engines
    assert {model.leases for model in engine.models.resident()} == {0}


def test_a_job_reports_its_text_while_it_runs_and_recognises_the_speakers_that_came_with_its_upload(
    executor: LocalExecutor, sample_call: Path, ecapa_path: Path, tmp_path: Path
) -> None:
    excerpt(sample_call, tmp_path / "audio", 30.0)
    # In these seconds only one person speaks, by the .rttm of the call.
    with wave.open(str(sample_call)) as call, wave.open(str(tmp_path / "speaker-1"), "wb") as part:
        part.setparams(call.getparams())
        call.setpos(int(21.9 * call.getframerate()))
        part.writeframes(call.readframes(int(5.9 * call.getframerate())))
    with wave.open(str(tmp_path / "speaker-0"), "wb") as silent:
        silent.setparams((1, 2, 16_000, 0, "NONE", ""))
        silent.writeframes(bytes(2 * 16_000 * 3))
    reported: list[PartialSegments] = []
    transcript = executor.run(
        replace(job(TranscriptionOptions(language="en", diarize=True)), known_speakers=("Silent", "Sheila")),
        tmp_path / "audio",
        on_progress=lambda progress: None,
        on_partial=reported.append,
        on_missing_model=lambda name: None,
        cancel=threading.Event(),
    )
    # The job reports the window again when it finds no alignment model and takes the word times from the attention.
    assert {partial.index for partial in reported} == {0}
    assert all("New Jersey" in " ".join(segment.text for segment in partial.segments) for partial in reported)
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


def test_one_job_at_a_time_on_a_gpu_is_named_in_the_log(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend_gpus(monkeypatch)
    caplog.set_level("INFO", "whisper_api")
    for concurrency in (False, True):
        caplog.clear()
        executor = LocalExecutor(replace(config, device="cuda", enable_concurrency=concurrency))
        executor.preload()
        executor.close()
        assert ("ENABLE_CONCURRENCY=true" in caplog.text) is not concurrency


def test_warming_up_loads_the_models_that_only_some_jobs_need(config: Config, ecapa_path: Path) -> None:
    executor = LocalExecutor(replace(config, preload_models=True))
    executor.preload()
    assert executor.facts().resident_models == 1
    executor.warm_up()
    assert executor.facts().resident_models > 1
    executor.close()


def test_preloading_loads_no_models_when_the_configuration_says_so(config: Config) -> None:
    executor = EXECUTORS["local"](config)
    executor.preload()
    assert executor.facts().resident_models == 0
    executor.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_thread_fails_is_replaced(
    engines: list[Engine],
    executor: LocalExecutor,
    sample_call: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(operation: OnnxDecode) -> Hashable:
        raise RuntimeError("an error in the thread, outside of an operation's run")

    excerpt(sample_call, tmp_path / "audio", 8.0)
    text = run(executor, tmp_path / "audio")
    with monkeypatch.context() as patch:
        patch.setattr(OnnxDecode, "memory_key", property(fail))
        with pytest.raises(EngineClosed):
            run(executor, tmp_path / "audio")
    assert run(executor, tmp_path / "audio") == text
    assert len(engines) == 2


def test_a_closed_executor_makes_no_engine(engines: list[Engine], executor: LocalExecutor, sample_call: Path) -> None:
    executor.close()
    executor.close()
    with pytest.raises(EngineClosed):
        run(executor, sample_call)
    with pytest.raises(EngineClosed):
        executor.preload()
    assert engines == []


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
def test_other_names_are_refused(executor: LocalExecutor, model: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        executor.check(TranscriptionOptions(model=model), None)
    assert len(str(caught.value)) < 600


def test_the_error_of_a_misspelled_name_suggests_the_right_one(executor: LocalExecutor) -> None:
    with pytest.raises(UnknownModel, match="large-v3"):
        executor.check(TranscriptionOptions(model="lagre-v3"), None)


def test_the_configured_model_is_served_even_if_the_catalogue_does_not_have_it(config: Config) -> None:
    executor = LocalExecutor(replace(config, model="/models/mine"))
    executor.check(TranscriptionOptions(model="/models/mine"), None)
    assert executor.model_name(TranscriptionOptions()) == "/models/mine"
    with pytest.raises(UnknownModel):
        executor.check(TranscriptionOptions(model="/models/other"), None)


def test_model_names_are_those_of_the_catalogue(config: Config) -> None:
    executor = LocalExecutor(replace(config, model="auto"))
    assert executor.model_name(TranscriptionOptions(model="turbo")) == "large-v3-turbo"
    assert executor.model_name(TranscriptionOptions()) == "base"
    assert executor.device == "cpu"
    assert LocalExecutor(replace(config, device="cuda:99")).device == "cuda:99"


def test_of_all_gpus_the_first_usable_one_is_the_device(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctranslate2.get_cuda_device_count", lambda: 2)
    monkeypatch.setattr("whisper_api.engine.worker.device.cuda_problem", ["too old", None].__getitem__)
    assert LocalExecutor(replace(config, device="cuda:all")).device == "cuda:1"


def test_diarization_that_a_job_asks_for_needs_a_model(
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
    # The preloading fetches the model before the job runs.
    loading = LocalExecutor(replace(config, models_dir=tmp_path / "empty", preload_models=True))
    loading.check(asked, None)


def test_a_missing_model_is_downloaded_before_its_job_runs(
    config: Config, base_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whisper_api.engine.models.files.cached_snapshot", lambda *ignored: None)
    executor = LocalExecutor(replace(config, models_dir=tmp_path / "models"))
    wanted = TranscriptionOptions(model="base")
    assert executor.missing_models(wanted, None)[0] == "base"
    assert not (tmp_path / "models").exists()
    canceled = threading.Event()
    canceled.set()
    # Another process holds the lock of the model, so the download has to wait.
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
    # A model that cannot be downloaded is not missing: its job fails when it runs.
    assert LocalExecutor(replace(config, model="/nowhere/at/all")).missing_models(QUICK, None) == ()


def test_a_job_is_refused_when_the_disk_has_no_room_for_its_model(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whisper_api.engine.models.files.cached_snapshot", lambda *ignored: None)
    executor = LocalExecutor(replace(config, models_dir=tmp_path / "models"))
    executor.check(TranscriptionOptions(model="large-v3"), None)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=10**12, used=0, free=10**9))
    with pytest.raises(ModelUnavailable, match=r"large-v3 needs 3\.. GB more .* 1\.0 GB are free"):
        executor.check(TranscriptionOptions(model="large-v3"), None)


@pytest.mark.parametrize("language", ["en", "auto"])
def test_other_jobs_run_while_the_alignment_model_of_a_job_is_downloaded(
    language: str, config: Config, sample_call: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one job runs at a time. With ``auto`` the job finds its language, and so its alignment model, as it runs."""
    models = tmp_path / "models"
    models.mkdir()
    (models / "whisper").symlink_to(config.models_dir / "whisper", target_is_directory=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    wanted = TranscriptionOptions(language=language, diarize=False)
    with (
        slow_alignment_model(monkeypatch) as (hub, entry),
        contextlib.closing(new_service(tmp_path, LocalExecutor(replace(config, models_dir=models)))) as service,
    ):
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
    # The file of the hub is no alignment model, so loading it fails.
    assert any("Whisper's cross-attention" in warning for warning in done.warnings)
    assert len(hub.transfers("model.bin")) <= 2


# --- downloads ----------------------------------------------------------------------------------------------------


def test_a_download_is_progress_of_every_job_and_ends_when_it_is_canceled_or_the_executor_is_closed(
    config: Config, sample_call: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "whisper").symlink_to(config.models_dir / "whisper", target_is_directory=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    excerpt(sample_call, tmp_path / "audio", 8.0)
    executor = LocalExecutor(replace(config, models_dir=tmp_path / "models"))
    threads: set[int] = set()
    both_threads = threading.Event()

    def on_progress(progress: Progress) -> None:
        """Keep the job from going on until both threads have reported progress to it."""
        threads.add(threading.get_ident())
        if len(threads) == 2:
            both_threads.set()
        assert both_threads.wait(DEADLINE)

    with slow_alignment_model(monkeypatch), ThreadPoolExecutor(2) as pool, contextlib.closing(executor):
        canceled = threading.Event()
        download = pool.submit(executor.download_model, "align-en", canceled, None)
        until(lambda: re.fullmatch(r"fetching align-en \(\d+%\)", executor.activity))
        job = pool.submit(run, executor, tmp_path / "audio", on_progress)
        assert job.result(DEADLINE)
        canceled.set()
        with pytest.raises(Canceled):
            download.result(DEADLINE)
        assert executor.activity == ""
        download = pool.submit(executor.download_model, "align-en", threading.Event(), None)
        until(lambda: executor.activity)
        executor.close()
        with pytest.raises(EngineClosed):
            download.result(DEADLINE)
