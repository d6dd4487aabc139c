"""pyannote.audio's community-1 diarization pipeline, whose files need an account. The worker runs its models.

This module assembles the pipeline from its configuration and checkpoints, because pyannote's own loader unpickles any
object of a checkpoint and reports its use to pyannote.
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

from whisper_api.engine.audio.device_copies import COPIES
from whisper_api.engine.diarize.segmentation import load_checkpoint, whole_window
from whisper_api.engine.worker.device import limit_torch_threads, release_cached_memory
from whisper_api.errors import ModelCorrupt
from whisper_api.schema import SAMPLE_RATE

if TYPE_CHECKING:
    import torch

    from whisper_api.engine.context import JobContext

Floats = npt.NDArray[np.float32]

# Windows of 10 s in one batch. On a CPU, larger batches are not faster and delay other jobs.
_SEGMENTATION_WINDOWS = {"cpu": 8, "cuda": 64}
_EMBEDDING_WINDOWS = {"cpu": 2, "cuda": 64}
_SEGMENTATION_SHARE = 0.3


@dataclass(frozen=True)
class CommunitySource:
    """Loads the pipeline from ``config.yaml`` and the folders ``segmentation``, ``embedding`` and ``plda``.

    Attributes:
        path: the directory.
        device: torch's name of the device.
        dtype: number format of the embedding's convolutions: float32, bfloat16 or float16.
    """

    path: str
    device: str
    dtype: str = "float32"

    def estimated_bytes(self) -> int:
        """Size of the weights."""
        return sum(file.stat().st_size for file in Path(self.path).glob("*/*") if file.is_file())

    def load(self) -> Any:
        """Load the pipeline, an instance of pyannote's ``SpeakerDiarization``.

        Raises:
            ModelCorrupt: the files do not make such a pipeline.
        """
        # Without this, set before the import, pyannote.audio reports its use to pyannote.
        os.environ.setdefault("PYANNOTE_METRICS_ENABLED", "0")
        import torch

        limit_torch_threads()
        try:
            with warnings.catch_warnings():
                # torchcodec warns that it finds no ffmpeg, but the audio is decoded already.
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
        """Free the memory of the device."""
        model._segmentation.model.to("meta")
        model._embedding.model_.to("meta")
        release_cached_memory()


def run_pipeline(ctx: JobContext, audio: Floats, pipeline: Any, *, one_speaker: bool = False) -> Any:
    """Run the pipeline on one recording.

    Args:
        ctx: the job; its options bound the number of speakers.
        audio: shape (samples,), 16 kHz.
        pipeline: from :class:`CommunitySource`. Jobs share it, so it is not changed.
        one_speaker: whether one person speaks, whatever the options say.

    Returns:
        pyannote's ``DiarizeOutput``.
    """
    import torch

    options = ctx.options
    # The copy shares the models; its attributes replace the methods of the class.
    mine = copy.copy(pipeline)
    mine.get_segmentations = lambda file, hook=None: _segmentations(ctx, audio, pipeline)
    mine.get_embeddings = lambda file, segmentations, exclude_overlap=False, hook=None: _embeddings(
        ctx, audio, pipeline, segmentations, exclude_overlap
    )
    file = {"uri": "recording", "waveform": torch.from_numpy(audio)[None], "sample_rate": SAMPLE_RATE}
    with warnings.catch_warnings():
        # pyannote warns when the number of speakers is not reached; the caller does that for both pipelines.
        warnings.simplefilter("ignore")
        return mine.apply(
            file,
            num_speakers=1 if one_speaker else options.num_speakers,
            min_speakers=None if one_speaker else options.min_speakers,
            max_speakers=None if one_speaker else options.max_speakers,
        )


@dataclass(frozen=True)
class CommunitySegmentation:
    """Work item: windows, (samples,), to probabilities, (frames, local speakers)."""

    inference: Any
    device: str
    max_items: int

    max_cost = math.inf

    @property
    def memory_key(self) -> Hashable:
        """Key under which the worker keeps the batch size that fits the memory."""
        return ("community segmentation", self.device)

    def run(self, inputs: Sequence[Floats]) -> Sequence[Floats]:
        import torch

        batch = torch.stack([COPIES.tensor(each, self.device) for each in inputs])
        return list(self.inference.infer(batch[:, None]))


@dataclass(frozen=True)
class CommunityEmbedding:
    """Work item: pairs of a window, (samples,), and masks, (speakers, frames), to embeddings, (speakers, dimension).

    The network runs once for a window. Only its last layer, the pooling, runs for each speaker.
    """

    model: Any
    device: str
    max_items: int

    max_cost = math.inf

    @property
    def memory_key(self) -> Hashable:
        """Key under which the worker keeps the batch size that fits the memory."""
        return ("community embedding", self.device)

    def run(self, inputs: Sequence[tuple[Floats, Floats]]) -> Sequence[Floats]:
        import torch

        waveforms = torch.stack([COPIES.tensor(waveform, self.device) for waveform, _ in inputs])[:, None]
        masks = _to_device(np.stack([mask for _, mask in inputs]), self.device)
        network = self.model.resnet
        with torch.inference_mode():
            features = self.model.compute_fbank(waveforms).to(network.conv1.weight.dtype)
            frames = network.forward_frames(features).float()
            return list(self.model.forward_embedding(frames, weights=masks).cpu().numpy())


def _to_device(array: Floats, device: str) -> torch.Tensor:
    import torch

    tensor = torch.from_numpy(array)
    # A copy from pinned memory does not wait for the work of the device.
    return tensor if device == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _trunk(network: Any) -> tuple[Any, ...]:
    """The convolutional part of a ResNet, without pooling and the linear layers after it."""
    return (network.conv1, network.bn1, network.layer1, network.layer2, network.layer3, network.layer4)


def _join_normalisation(network: Any) -> None:
    """Fuse each batch normalization of a ResNet into the convolution before it."""
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
    """The windows of pyannote: all of one size, the last one padded with silence."""
    for start in range(0, max(1, len(audio) - size + step), step):
        yield whole_window(audio[start : start + size], size)


def _segmentations(ctx: JobContext, audio: Floats, pipeline: Any) -> Any:
    from pyannote.core import SlidingWindow, SlidingWindowFeature

    inference = pipeline._segmentation
    size, step = round(inference.duration * SAMPLE_RATE), round(inference.step * SAMPLE_RATE)
    operation = CommunitySegmentation(inference, ctx.device.torch_name, _SEGMENTATION_WINDOWS[ctx.device.kind])
    count = len(range(0, max(1, len(audio) - size + step), step))
    found: Floats = np.empty(0, dtype=np.float32)
    items = ((operation, window, inference.duration) for window in _windows(audio, size, step))
    for number, result in enumerate(ctx.run(items)):
        if number == 0:
            found = np.empty((count, *result.shape), dtype=result.dtype)
        found[number] = result
        ctx.progress(_SEGMENTATION_SHARE * (number + 1) / count)
    return SlidingWindowFeature(found, SlidingWindow(start=0.0, duration=inference.duration, step=inference.step))


def _embeddings(ctx: JobContext, audio: Floats, pipeline: Any, segmentations: Any, exclude_overlap: bool) -> Any:
    """The result of ``SpeakerDiarization.get_embeddings``, except for local speakers who are silent in a window.

    The pipeline ignores the embeddings of silent speakers.
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
    operation = CommunityEmbedding(model, ctx.device.torch_name, _EMBEDDING_WINDOWS[ctx.device.kind])
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
    # Only VBx clustering reads it. The default value would be downloaded.
    settings["plda"] = PLDA(plda / "xvec_transform.npz", plda / "plda.npz") if plda.is_dir() else None
    pipeline = SpeakerDiarization(**settings)
    if "freeze" in config:
        pipeline.freeze(config["freeze"])
    pipeline.instantiate(config.get("params") or pipeline.default_parameters())
    return pipeline


def _model(path: Path) -> Any:
    """Load a pyannote model from its checkpoint, of which only tensors and plain values are unpickled."""
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
    # A checkpoint also holds settings that the class computes itself.
    taken = inspect.signature(kind).parameters
    model: Any = kind(**{key: value for key, value in content["hyper_parameters"].items() if key in taken})
    model.specifications = Specifications(problem=problem, resolution=resolution, **plain)
    model.build()
    # Weights that only training needs may be left over; none may be missing.
    missing, _ = model.load_state_dict(content["state_dict"], strict=False)
    if missing:
        raise ModelCorrupt(f"{path}: {missing[0]} is missing from the weights")
    return model.eval()


_SPECIFICATIONS = ("duration", "min_duration", "warm_up", "classes", "powerset_max_classes", "permutation_invariant")
