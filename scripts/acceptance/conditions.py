"""The conditions of a probe: device, sizes and models; and what every probe needs of the device."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from gpu_gauge import Floats, speech
from random_models import make_alignment, make_ecapa, make_whisper

if TYPE_CHECKING:
    from whisper_api.engine.whisper.ctranslate2 import Ct2Whisper
    from whisper_api.engine.worker.device import Device

__all__ = ["ENCODERS", "Conditions", "Memory", "milliseconds", "percentile"]

POLL_SECONDS = 0.002
ENCODERS = ("ctranslate2", "torch")
MEBI = 1 << 20


@dataclass(frozen=True)
class Conditions:
    """What a probe is told.

    Attributes:
        device: ``cpu`` or as torch names a GPU.
        models: a models directory for random models; a probe makes the model that it misses.
        tiny: whether to use the smallest shapes, which show that a probe works.
        share: the wanted length of the run over ten minutes; decides how much is measured.
    """

    device: str
    models: str
    tiny: bool = False
    share: float = 1.0

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU, so that bounds count."""
        return self.device != "cpu"

    @property
    def place(self) -> Device:
        """The device of the engine."""
        from whisper_api.engine.worker.device import Device

        kind, _, index = self.device.partition(":")
        return Device(cast(Literal["cpu", "cuda"], kind), int(index or 0))

    @property
    def compute_type(self) -> str:
        """Half precision on a GPU. A CPU has none in CTranslate2, so int8 takes its place there."""
        return "float16" if self.is_gpu else "int8"

    @property
    def frames(self) -> int:
        """Length of a window, 100 a second."""
        return 500 if self.tiny else 3000

    @property
    def tokens(self) -> int:
        """Tokens of each window."""
        return 4 if self.tiny else 100

    def size(self, usual: int, tiny: int) -> int:
        """A size for this run."""
        return tiny if self.tiny else usual

    def windows(self, count: int) -> list[Floats]:
        """Speech for so many windows, each another stretch."""
        return [speech(self.frames / 100, start=12.0 + number) for number in range(count)]

    def scope(self) -> AbstractContextManager[None]:
        """The context of a thread that runs models."""
        return self.place.scope()

    def synchronize(self) -> None:
        """Wait for the device."""
        self.place.check()

    def names(self, *names: str) -> list[str]:
        """The random Whisper models of these names; tiny takes the place of all of them in a tiny run."""
        return ["tiny"] if self.tiny else list(names)

    def whisper_dir(self, name: str) -> Path:
        """The directory of a random Whisper model."""
        root = Path(self.models)
        directory = root / "whisper" / name
        if not (directory / "preprocessor_config.json").exists():
            make_whisper(root, name)
        return directory

    def all_models(self, whisper: str) -> Path:
        """The models directory with everything for a job in English."""
        root = Path(self.models)
        self.whisper_dir(whisper)
        if not (root / "align").exists():
            make_alignment(root)
        if not (root / "diarization" / "ecapa").exists():
            make_ecapa(root)
        return root

    def load(
        self,
        directory: Path,
        *,
        device: str | None = None,
        compute_type: str | None = None,
        lanes: int = 1,
        encoder: str = "auto",
    ) -> Ct2Whisper:
        """A model whose decoder CTranslate2 runs, also on a CPU.

        Args:
            directory: of the model.
            device: in place of that of the run.
            compute_type: in place of half precision.
            lanes: calls at once.
            encoder: what runs the encoder: one of :data:`ENCODERS`, or ``auto``.
        """
        from whisper_api.engine.whisper.ctranslate2 import Ct2Whisper

        kind, _, index = (device or self.device).partition(":")
        return Ct2Whisper(
            directory,
            device=kind,
            device_index=int(index or 0),
            compute_type=compute_type or self.compute_type,
            threads=1,
            lanes=lanes,
            offline=True,
            encoder=encoder,
        )


class Memory:
    """Memory of the device that is in use: of a GPU by all processes, in place of that of a CPU this process's own."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions

    def used(self) -> int:
        """Bytes."""
        if not self._conditions.is_gpu:
            # In pages, of which the second number counts those in memory.
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
        import torch

        free, total = torch.cuda.mem_get_info(self._conditions.device)
        return int(total - free)

    @contextlib.contextmanager
    def peak(self) -> Iterator[Callable[[], int]]:
        """Watch the memory while open; then the yielded function gives the bytes at its peak."""
        done, most = threading.Event(), [self.used()]

        def watch() -> None:
            with self._conditions.scope() if self._conditions.is_gpu else nullcontext():
                while not done.wait(POLL_SECONDS):
                    most[0] = max(most[0], self.used())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield lambda: most[0]
        finally:
            done.set()
            watcher.join()


def milliseconds(conditions: Conditions, work: Callable[[], Any], runs: int) -> list[float]:
    """Milliseconds of each of some runs, after one that is not kept."""
    found = []
    for _ in range(1 + runs):
        conditions.synchronize()
        begun = time.perf_counter()
        work()
        conditions.synchronize()
        found.append(1000 * (time.perf_counter() - begun))
    return found[1:]


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which so much of the others lies, 0 to 1."""
    if part == 0.5:
        return statistics.median(values)
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]
