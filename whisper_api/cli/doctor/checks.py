"""The report of ``whisper-api doctor``: versions, devices, directories, and one real run of each stage."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from whisper_api.cli.doctor.check import Check, State, attempt, failure
from whisper_api.engine.worker.device import cuda_problem
from whisper_api.permissions import exposed_files

if TYPE_CHECKING:
    from whisper_api.config import Loaded

DISTRIBUTIONS = (
    "whisper-api",
    "torch",
    "ctranslate2",
    "faster-whisper",
    "whisperx",
    "pyannote.audio",
    "av",
    "onnxruntime",
    "transformers",
    "huggingface-hub",
    "numpy",
)


class Report(msgspec.Struct, frozen=True):
    """The report on this machine.

    Attributes:
        can_transcribe: whether transcription works now, without a download.
        versions: distribution to its version; None when it is not installed.
        devices: the checks of the processor and of CUDA.
        places: the checks of the configuration, the directories and the token.
        stages: the checks of the stages of a transcription.
    """

    can_transcribe: bool
    versions: dict[str, str | None]
    devices: tuple[Check, ...]
    places: tuple[Check, ...]
    stages: tuple[Check, ...]


def examine(loaded: Loaded) -> Report:
    """Run all checks. Downloads nothing and raises nothing.

    Args:
        loaded: the configuration with the models directory, and the model, language and device to try.
    """
    try:
        from whisper_api.cli.doctor.stages import try_stages

        stages = try_stages(loaded.config)
    except Exception as error:
        stages = (failure("stages", error),)
    needed = {check.name: check.state for check in stages}
    return Report(
        can_transcribe=all(needed.get(name) == "ok" for name in ("decode", "transcription")),
        versions=_versions(),
        devices=_devices(),
        places=_places(loaded),
        stages=stages,
    )


def _versions() -> dict[str, str | None]:
    versions = {"python": platform.python_version()} | {name: _version(name) for name in DISTRIBUTIONS}
    try:
        import av

        versions |= {name: ".".join(map(str, numbers)) for name, numbers in av.library_versions.items()}
    except Exception:
        versions["ffmpeg libraries"] = None
    return versions


def _version(distribution: str) -> str | None:
    """The version of a distribution, read from its metadata so that nothing is imported."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> tuple[Check, ...]:
    return (
        attempt("processor", _processor),
        attempt("cuda, for Whisper", _cuda_of_ctranslate2),
        attempt("cuda, for torch", _cuda_of_torch),
    )


def _processor() -> str:
    import ctranslate2

    from whisper_api.engine.models.download import human_bytes
    from whisper_api.engine.worker.device import available_ram, physical_cores

    cores = physical_cores()
    ram = available_ram()
    memory = f"{human_bytes(ram)} of memory free" if ram is not None else "free memory not known"
    types = ", ".join(sorted(ctranslate2.get_supported_compute_types("cpu")))
    return f"{cores} physical core{'' if cores == 1 else 's'}, {memory}, computes {types}"


def _cuda_of_ctranslate2() -> Check | str:
    import ctranslate2

    count = ctranslate2.get_cuda_device_count()
    if count == 0:
        return Check("cuda, for Whisper", *_why_no_cuda())
    types = ", ".join(sorted(ctranslate2.get_supported_compute_types("cuda", 0)))
    return f"{count} device{'' if count == 1 else 's'}, computes {types}"


def _why_no_cuda() -> tuple[State, str, str | None]:
    """The reason why there is no CUDA device, from the driver, because the libraries do not report a reason."""
    import ctypes
    import sys

    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return "missing", f"no NVIDIA driver ({library} is not there)", None
    code = int(driver.cuInit(0))
    if code:
        return "failed", f"the NVIDIA driver cannot start (cuInit gave {code})", "look at what nvidia-smi says"
    return "missing", "the NVIDIA driver sees no device", "in a container, start it with access to the GPU"


def _cuda_of_torch() -> Check | str:
    import torch

    name = "cuda, for torch"
    if torch.version.cuda is None:
        return Check(name, "missing", "torch is built for the processor only")
    if not torch.cuda.is_available():
        state, detail, remedy = _why_no_cuda()
        return Check(name, state, f"built for CUDA {torch.version.cuda}; {detail}", remedy)
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    listed = ", ".join(f"{device.name} ({device.total_memory / 1e9:.0f} GB)" for device in devices)
    # Problems of torch's and of CTranslate2's libraries: each runs a kernel.
    problems = [problem for index in range(len(devices)) if (problem := cuda_problem(index))]
    if problems:
        return Check(name, "failed", f"CUDA {torch.version.cuda}: {listed}; {'; '.join(problems)}")
    return f"CUDA {torch.version.cuda}: {listed}"


def _places(loaded: Loaded) -> tuple[Check, ...]:
    config = loaded.config
    if loaded.path is None:
        file = Check("configuration", "missing", "no file, the defaults hold")
    else:
        file = Check("configuration", "ok", str(loaded.path))
    if config.hf_token is None:
        token = Check("Hugging Face token", "missing", "none; needed for gated models only, such as community-1")
    else:
        token = Check("Hugging Face token", "ok", f"from {loaded.origins['HF_TOKEN']}")
    return (
        file,
        *(Check("configuration", "failed", warning) for warning in loaded.warnings),
        attempt("models", lambda: _place(config.models_dir)),
        attempt("data", lambda: _place(config.data_dir)),
        attempt("uploads", lambda: _place(config.tmp_dir)),
        *(Check("permissions", "failed", warning) for warning in exposed_files(config)),
        token,
    )


def _place(directory: Path) -> str:
    from whisper_api.engine.models.download import human_bytes

    there = next(path for path in (directory, *directory.parents) if path.is_dir())
    free = human_bytes(shutil.disk_usage(there).free)
    return f"{directory}, {free} free{'' if there == directory else ', made when it is needed'}"
