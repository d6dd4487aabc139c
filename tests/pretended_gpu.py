"""CTranslate2 on a CPU behind the code of a GPU."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from whisper_api.engine.align.models import AlignmentModel, AlignmentSource
from whisper_api.engine.whisper.ctranslate2 import Ct2Whisper
from whisper_api.engine.whisper.settings import WhisperSource
from whisper_api.engine.worker.device import Device


def run_on_ctranslate2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every engine run Whisper by CTranslate2, as on a GPU."""

    def load(source: WhisperSource) -> Ct2Whisper:
        return Ct2Whisper(
            Path(source.path),
            device="cpu",
            device_index=0,
            compute_type=source.compute_type,
            threads=source.threads,
            lanes=source.lanes,
            offline=True,
            encoder=source.encoder,
        )

    monkeypatch.setattr(WhisperSource, "load", load)
    # As on a GPU with numbers of 16 bits: with ``auto``, torch's encoder runs if it agrees with CTranslate2's.
    monkeypatch.setattr(Ct2Whisper, "prefers_torch", True)


def align_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let alignment models run on padded batches, as on a GPU, but in float32: a CPU is slow in float16."""
    load = AlignmentSource.load

    def loaded(source: AlignmentSource) -> AlignmentModel:
        dtype = "float32" if source.dtype == "float16" else source.dtype
        return replace(load(replace(source, dtype=dtype)), together=dtype == "float32")

    monkeypatch.setattr(AlignmentSource, "load", loaded)


@dataclass
class Scopes:
    """The current device of each thread.

    Attributes:
        entered: id of a thread, and numbers of the devices whose scopes it has entered.
    """

    entered: dict[int, set[int]] = field(default_factory=dict)

    def current(self) -> set[int]:
        """The devices whose scopes this thread has entered."""
        return self.entered.get(threading.get_ident(), set())


class PretendedGpu(Device):
    """A GPU whose arithmetic a CPU does.

    The stages ask for its kind, and run in batches, on lanes and in scopes as on a GPU. Torch's modules go to the CPU.
    """

    scopes: Scopes

    @property
    def torch_name(self) -> str:
        return "cpu"

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        self.scopes.entered.setdefault(threading.get_ident(), set()).add(self.index)
        yield

    def check(self) -> None:
        pass

    def free_memory(self) -> int:
        return 4 << 30


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, compute_types: tuple[str, ...] = ("int8",)) -> Scopes:
    """Let the machine have a GPU for each of these compute types, whichever is asked for.

    Returns:
        The scopes that threads enter.
    """
    scopes = Scopes()
    gpus = []
    for index in range(len(compute_types)):
        gpu = PretendedGpu("cuda", index)
        object.__setattr__(gpu, "scopes", scopes)
        gpus.append(gpu)
    monkeypatch.setattr("whisper_api.engine.engine.choose_devices", lambda name, index: tuple(gpus))
    monkeypatch.setattr(
        "whisper_api.engine.whisper.settings.choose_compute_type", lambda device, requested: compute_types[device.index]
    )
    for module in ("align.align", "diarize.analysis"):
        monkeypatch.setattr(f"whisper_api.engine.{module}.has_bfloat16", lambda device: True)
    align_in_float32(monkeypatch)
    # The sweep decodes noise to the token limit, which takes a CPU minutes at the larger sizes.
    monkeypatch.setattr("whisper_api.engine.whisper.settings.SIZES", (1,))
    # What an engine on a GPU remembers of its process would forbid the forks of other tests.
    monkeypatch.setattr("whisper_api.engine.worker.fork._user", None)
    run_on_ctranslate2(monkeypatch)
    return scopes
