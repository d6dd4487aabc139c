"""The diarization pipeline of pyannote.audio that needs an account, its models' calls made work items.

The pipeline is put together from its configuration and its files: pyannote's own loader would unpickle whatever a
checkpoint holds, and report to its makers that it did.
"""

from __future__ import annotations

import copy
import inspect
import math
import os
import warnings
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from whisper_api.engine.diarize.segmentation import load_checkpoint
from whisper_api.engine.worker.device import limit_torch_threads
from whisper_api.errors import ModelCorrupt
from whisper_api.schema import SAMPLE_RATE

if TYPE_CHECKING:
    import torch

    from whisper_api.engine.context import JobContext

__all__ = ["CommunitySource", "run_pipeline"]

Floats = npt.NDArray[np.float32]

# Windows of 10 s in one batch. On a CPU more only keep other jobs waiting.
_SEGMENTATION_WINDOWS = {"cpu": 8, "cuda": 64}
_EMBEDDING_WINDOWS = {"cpu": 2, "cuda": 64}
_SEGMENTATION_SHARE = 0.3


@dataclass(frozen=True)
class CommunitySource:
    """The pipeline's directory: ``config.yaml`` and the folders ``segmentation``, ``embedding`` and ``plda``.

    Attributes:
        path: the directory.
        device: as torch names it.
        dtype: what the embedding's convolutions compute in: float32, bfloat16 or float16.
    """

    path: str
    device: str
    dtype: str = "float32"

    def estimated_bytes(self) -> int:
        """The size of the weights."""
        return sum(file.stat().st_size for file in Path(self.path).glob("*/*") if file.is_file())

    def load(self) -> Any:
        """The pipeline, an instance of pyannote's ``SpeakerDiarization``.

        Raises:
            ModelCorrupt: the files are not those of such a pipeline.
        """
        # pyannote.audio sends figures of its use to its makers unless it is told not to before it is imported.
        os.environ.setdefault("PYANNOTE_METRICS_ENABLED", "0")
        import torch

        limit_torch_threads()
        try:
            with warnings.catch_warnings():
                # That torchcodec finds no ffmpeg: the audio is decoded already.
                warnings.simplefilter("ignore")
                pipeline = _assemble(Path(self.path))
        except ModelCorrupt:
            raise
        except Exception as error:
            raise ModelCorrupt(f"diarization pipeline in {self.path}: cannot be loaded ({error})") from error
        network = pipeline._embedding.model_.resnet
        _join_normalisation(network)
        for part in _trunk(network):
            part.to(dtype=getattr(torch, self.dtype), memory_format=torch.channels_last)
        return pipeline.to(torch.device(self.device))

    def unload(self, model: Any) -> None:
        """Give the device's memory back."""
        import torch

        model._segmentation.model.to("meta")
        model._embedding.model_.to("meta")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def run_pipeline(ctx: JobContext, audio: Floats, pipeline: Any, *, alone: bool = False) -> Any:
    """Run the pipeline on one recording.

    Args:
        ctx: the job; its options bound the number of speakers.
        alone: whether one person speaks in it, whatever the options say.
        audio: shape (samples,), 16 kHz.
        pipeline: from :class:`CommunitySource`. Jobs share it, so it is not changed.

    Returns:
        pyannote's ``DiarizeOutput``.
    """
    import torch

    options = ctx.options
    # A copy shares the models but has its own attributes, which come before the class's methods.
    mine = copy.copy(pipeline)
    mine.get_segmentations = lambda file, hook=None: _segmentations(ctx, audio, pipeline)
    mine.get_embeddings = lambda file, segmentations, exclude_overlap=False, hook=None: _embeddings(
        ctx, audio, pipeline, segmentations, exclude_overlap
    )
    file = {"uri": "recording", "waveform": torch.from_numpy(audio)[None], "sample_rate": SAMPLE_RATE}
    with warnings.catch_warnings():
        # That the number of speakers asked for was not reached: said by the caller, for either pipeline.
        warnings.simplefilter("ignore")
        return mine.apply(
            file,
            num_speakers=1 if alone else options.num_speakers,
            min_speakers=None if alone else options.min_speakers,
            max_speakers=None if alone else options.max_speakers,
        )


@dataclass(frozen=True)
class SegmentWindows:
    """Run the segmentation: (samples,) windows to (frames, speakers) activity."""

    inference: Any
    device: str
    max_items: int

    max_cost = math.inf

    @property
    def memory_key(self) -> Hashable:
        """What an out-of-memory limit is remembered under."""
        return ("community segmentation", self.device)

    def run(self, inputs: Sequence[Floats]) -> Sequence[Floats]:
        """One result for each window."""
        import torch

        return list(self.inference.infer(torch.from_numpy(np.stack(inputs))[:, None]))


@dataclass(frozen=True)
class EmbedWindows:
    """Run the embedding: pairs of (samples,) window and (speakers, frames) masks to (speakers, dimension).

    The network runs once for a window; only its last, pooling layer runs for each speaker.
    """

    model: Any
    device: str
    max_items: int

    max_cost = math.inf

    @property
    def memory_key(self) -> Hashable:
        """What an out-of-memory limit is remembered under."""
        return ("community embedding", self.device)

    def run(self, inputs: Sequence[tuple[Floats, Floats]]) -> Sequence[Floats]:
        """One result for each window."""
        import torch

        waveforms = _to_device(np.stack([waveform for waveform, _ in inputs])[:, None], self.device)
        masks = _to_device(np.stack([mask for _, mask in inputs]), self.device)
        network = self.model.resnet
        with torch.inference_mode():
            features = self.model.compute_fbank(waveforms).to(network.conv1.weight.dtype)
            frames = network.forward_frames(features).float()
            return list(self.model.forward_embedding(frames, weights=masks).cpu().numpy())


def _to_device(array: Floats, device: str) -> torch.Tensor:
    import torch

    tensor = torch.from_numpy(array)
    # From pinned memory the copy runs beside what the device is doing.
    return tensor if device == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _trunk(network: Any) -> tuple[Any, ...]:
    """The convolutional part of a ResNet: all but pooling and the linear layers behind it."""
    return (network.conv1, network.bn1, network.layer1, network.layer2, network.layer3, network.layer4)


def _join_normalisation(network: Any) -> None:
    """Make each batch normalisation of a ResNet part of the convolution before it."""
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    pairs = [(network, "conv1", "bn1")]
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in layer:
            pairs += [(block, f"conv{i}", f"bn{i}") for i in (1, 2, 3) if hasattr(block, f"bn{i}")]
            if len(block.shortcut) == 2:
                pairs.append((block.shortcut, "0", "1"))
    for owner, conv, norm in pairs:
        setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())


def _windows(audio: Floats, size: int, step: int) -> Iterator[Floats]:
    """Windows of one size that cover the recording, the last one filled up with silence: as pyannote slides."""
    for start in range(0, max(1, len(audio) - size + step), step):
        window = audio[start : start + size]
        yield np.pad(window, (0, size - len(window)))


def _segmentations(ctx: JobContext, audio: Floats, pipeline: Any) -> Any:
    from pyannote.core import SlidingWindow, SlidingWindowFeature

    inference = pipeline._segmentation
    size, step = round(inference.duration * SAMPLE_RATE), round(inference.step * SAMPLE_RATE)
    operation = SegmentWindows(inference, ctx.device.torch_name, _SEGMENTATION_WINDOWS[ctx.device.kind])
    count = len(range(0, max(1, len(audio) - size + step), step))
    results = []
    for result in ctx.run((operation, window, inference.duration) for window in _windows(audio, size, step)):
        results.append(result)
        ctx.progress(_SEGMENTATION_SHARE * len(results) / count)
    return SlidingWindowFeature(
        np.stack(results), SlidingWindow(start=0.0, duration=inference.duration, step=inference.step)
    )


def _embeddings(ctx: JobContext, audio: Floats, pipeline: Any, segmentations: Any, exclude_overlap: bool) -> Any:
    """What ``SpeakerDiarization.get_embeddings`` gives, but for speakers who are silent in a window.

    Those the pipeline assigns to nobody, whatever their embedding is.
    """
    window = segmentations.sliding_window
    size, step = round(window.duration * SAMPLE_RATE), round(window.step * SAMPLE_RATE)
    masks = np.nan_to_num(segmentations.data, nan=0.0).astype(np.float32).transpose(0, 2, 1)
    if exclude_overlap:
        least = math.ceil(masks.shape[2] * pipeline._embedding.min_num_samples / size)
        clean = masks * (masks.sum(axis=1, keepdims=True) < 2)
        masks = np.where(clean.sum(axis=2, keepdims=True) > least, clean, masks)
    speaking = masks.any(axis=(1, 2))
    embeddings = np.ones((*masks.shape[:2], pipeline._embedding.dimension), dtype=np.float32)
    model = pipeline._embedding.model_
    operation = EmbedWindows(model, ctx.device.torch_name, _EMBEDDING_WINDOWS[ctx.device.kind])
    items = (
        (operation, (samples, masks[number]), float(window.duration))
        for number, samples in enumerate(_windows(audio, size, step))
        if speaking[number]
    )
    for done, (number, result) in enumerate(zip(np.flatnonzero(speaking), ctx.run(items), strict=True), start=1):
        active = masks[number].any(axis=1)
        embeddings[number, active] = result[active]
        ctx.progress(_SEGMENTATION_SHARE + (1 - _SEGMENTATION_SHARE) * done / int(speaking.sum()))
    return embeddings


def _assemble(path: Path) -> Any:
    import yaml  # type: ignore[import-untyped]
    from pyannote.audio.core.plda import PLDA
    from pyannote.audio.pipelines import SpeakerDiarization

    config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    name = config["pipeline"]["name"]
    if name.rpartition(".")[2] != "SpeakerDiarization":
        raise ModelCorrupt(f"{path / 'config.yaml'}: the pipeline is {name}, not SpeakerDiarization")
    known = inspect.signature(SpeakerDiarization).parameters
    settings = {key: value for key, value in config["pipeline"].get("params", {}).items() if key in known}
    settings |= {"legacy": False, "token": None, "cache_dir": None}
    settings["segmentation"] = _model(path / "segmentation" / "pytorch_model.bin")
    settings["embedding"] = _model(path / "embedding" / "pytorch_model.bin")
    plda = path / "plda"
    # Only the clustering named VBx reads it; the default would be fetched.
    settings["plda"] = PLDA(plda / "xvec_transform.npz", plda / "plda.npz") if plda.is_dir() else None
    pipeline = SpeakerDiarization(**settings)
    if "freeze" in config:
        pipeline.freeze(config["freeze"])
    pipeline.instantiate(config.get("params") or pipeline.default_parameters())
    return pipeline


def _model(path: Path) -> Any:
    """A pyannote model from its checkpoint, without unpickling anything but tensors and plain values."""
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.embedding import WeSpeakerResNet34
    from pyannote.audio.models.segmentation import PyanNet

    content = load_checkpoint(path)
    facts = content["pyannote.audio"]
    kinds = {"PyanNet": PyanNet, "WeSpeakerResNet34": WeSpeakerResNet34}
    kind = kinds.get(facts["architecture"]["class"])
    if kind is None:
        raise ModelCorrupt(f"{path}: the architecture is {facts['architecture']['class']}, not {' or '.join(kinds)}")
    given = facts["specifications"].state
    problem, resolution = (enum(given[key].args[0]) for enum, key in ((Problem, "problem"), (Resolution, "resolution")))
    plain = {key: given[key] for key in _SPECIFICATIONS if key in given}
    # A checkpoint also names settings that its class derives by itself.
    taken = inspect.signature(kind).parameters
    model: Any = kind(**{key: value for key, value in content["hyper_parameters"].items() if key in taken})
    model.specifications = Specifications(problem=problem, resolution=resolution, **plain)
    model.build()
    # What only training needs may be left over; nothing may be missing.
    missing, _ = model.load_state_dict(content["state_dict"], strict=False)
    if missing:
        raise ModelCorrupt(f"{path}: {missing[0]} is missing from the weights")
    return model.eval()


_SPECIFICATIONS = ("duration", "min_duration", "warm_up", "classes", "powerset_max_classes", "permutation_invariant")
