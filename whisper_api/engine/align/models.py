"""The wav2vec 2.0 models of alignment: their choice by language, loading, and runs on batches.

Wav2vec 2.0 (Baevski et al., 2020) runs as in WhisperX: on the raw waveform, without the feature extractor's
normalisation, one segment at a time on a CPU. On a GPU, the segments of a batch pass the convolutions one by one, and
the transformer together, padded and masked. Many of these models (including all of torchaudio's) normalise the first
convolution's output over time, so padding the waveform would change the result; padding after the convolutions does
not. In bfloat16 on a CPU, :mod:`whisper_api.engine.align.wav2vec` runs the network.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from whisper_api.engine.align.wav2vec import Wav2Vec, convert
from whisper_api.engine.audio.device_copies import COPIES
from whisper_api.engine.models.catalog import HUB_ALIGNMENT, TORCHAUDIO_ALIGNMENT
from whisper_api.engine.worker.device import limit_torch_threads, release_cached_memory
from whisper_api.errors import ModelCorrupt, UnknownModel

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

# Number of samples that the convolutions need for one frame.
MIN_SAMPLES = 400
_WEIGHTS = ("*.safetensors", "*.bin")


def model_id(language: str) -> str:
    """Bundle name or hub id of a language's alignment model.

    Raises:
        UnknownModel: the catalogue has no alignment model for the language.
    """
    if language in TORCHAUDIO_ALIGNMENT:
        return TORCHAUDIO_ALIGNMENT[language][0]
    if language in HUB_ALIGNMENT:
        return HUB_ALIGNMENT[language]
    raise UnknownModel(f"there is no alignment model for language {language!r}")


@dataclass(frozen=True)
class EmissionInput:
    """One segment for the model.

    Attributes:
        samples: float32, shape (samples,), mono, 16 kHz.
        columns: int64, shape (labels,): the labels whose log probabilities are returned; None for all.
        wildcard: whether to return a further column with the best label of each frame except the blank.
    """

    samples: npt.NDArray[np.float32]
    columns: npt.NDArray[np.int64] | None
    wildcard: bool = False


@dataclass(frozen=True, eq=False)
class AlignmentModel:
    """A loaded model. Any number of threads may run it.

    Attributes:
        network: torchaudio's ``Wav2Vec2Model`` or transformers' ``Wav2Vec2ForCTC``, in eval mode; without weights when
            ``packed`` has them.
        dictionary: lower-case character or special token to label.
        blank: the label of the CTC blank.
        together: True to run the transformer on a padded batch, False to run it on one segment after another.
        packed: the network in bfloat16 for a CPU; None for any other device or type.
    """

    network: torch.nn.Module
    dictionary: dict[str, int]
    blank: int
    together: bool
    packed: Wav2Vec | None = None

    def logits(self, waveforms: Sequence[npt.NDArray[np.float32]]) -> list[torch.Tensor]:
        """Run the network.

        Args:
            waveforms: float32, shape (samples,) each, 16 kHz.

        Returns:
            Logits of each waveform, shape (frames, labels), on the network's device.
        """
        import torch

        if self.packed is not None:
            return [self.packed(_filled(torch.tensor(waveform))) for waveform in waveforms]
        like = next(self.network.parameters())
        tensors = [_moved(waveform, like)[None] for waveform in waveforms]
        long = [tensor for tensor in tensors if tensor.shape[1] >= MIN_SAMPLES]
        if self.together and len(long) > 1 and self._has_parts():
            batch = iter(self._together(long))
            return [next(batch) if tensor.shape[1] >= MIN_SAMPLES else self._alone(tensor) for tensor in tensors]
        return [self._alone(tensor) for tensor in tensors]

    @property
    def may_overflow(self) -> bool:
        """Whether the network computes in float16, whose greatest number is 65504."""
        import torch

        return self.packed is None and next(self.network.parameters()).dtype == torch.float16

    def in_float32(self) -> AlignmentModel:
        """A copy of the model in float32. Another lane may run the model meanwhile."""
        return replace(self, network=copy.deepcopy(self.network).float())

    def _alone(self, waveform: torch.Tensor) -> torch.Tensor:
        import torch

        lengths = None
        if waveform.shape[1] < MIN_SAMPLES:
            lengths = torch.tensor([waveform.shape[1]], device=waveform.device)
            waveform = _filled(waveform)
        output: Any = self.network(waveform) if self._is_hub() else self.network(waveform, lengths=lengths)[0]
        logits: torch.Tensor = (output.logits if self._is_hub() else output)[0]
        return logits

    def _together(self, waveforms: list[torch.Tensor]) -> list[torch.Tensor]:
        import torch

        network: Any = self.network
        if self._is_hub():
            features = [network.wav2vec2.feature_extractor(waveform)[0].T for waveform in waveforms]
        else:
            features = [network.feature_extractor(waveform, None)[0][0] for waveform in waveforms]
        frames = [len(feature) for feature in features]
        padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
        lengths = torch.tensor(frames, device=padded.device)
        if self._is_hub():
            mask = torch.arange(padded.shape[1], device=padded.device)[None] < lengths[:, None]
            hidden, _ = network.wav2vec2.feature_projection(padded)
            logits = network.lm_head(network.wav2vec2.encoder(hidden, attention_mask=mask)[0])
        else:
            logits = network.aux(network.encoder(padded, lengths))
        return [row[:count] for row, count in zip(logits, frames, strict=True)]

    def _is_hub(self) -> bool:
        return hasattr(self.network, "config")

    def _has_parts(self) -> bool:
        """Whether the network's convolutions and transformer can be called separately."""
        network: Any = self.network
        if self._is_hub():
            return hasattr(network, "wav2vec2") and network.wav2vec2.adapter is None
        return hasattr(network, "feature_extractor") and network.aux is not None


def _filled(waveform: torch.Tensor) -> torch.Tensor:
    """Append silence to a waveform that is too short for one frame."""
    import torch

    return torch.nn.functional.pad(waveform, (0, max(0, MIN_SAMPLES - waveform.shape[-1])))


def _moved(waveform: npt.NDArray[np.float32], like: torch.Tensor) -> torch.Tensor:
    """Convert a waveform to a tensor with the type and device of another tensor."""
    return COPIES.tensor(waveform, str(like.device)).to(like.dtype)


def _fold_weight_norm(network: torch.nn.Module) -> None:
    """Compute the normalised weights of convolutions once, and in float32; a network with hooks cannot be copied."""
    from torch.nn.utils import parametrize, remove_weight_norm

    for module in network.modules():
        if hasattr(module, "weight_g"):
            remove_weight_norm(module)
        elif parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")


@dataclass(frozen=True)
class Emissions:
    """The operation of the alignment model: log probabilities of the requested labels for each segment's frames."""

    model: AlignmentModel
    max_items: int = 64
    max_cost: float = 120.0
    memory_key: Hashable = field(default="alignment", compare=False)

    def run(self, inputs: Sequence[EmissionInput]) -> list[npt.NDArray[np.float32]]:
        """Run the model.

        Returns:
            Log softmax of each input: float32, shape (frames, columns), the wildcard's column last.
        """
        import torch

        with torch.inference_mode():
            found = self._emissions(self.model, inputs)
            if self.model.may_overflow and any(np.isnan(emission).any() for emission in found):
                log.info("a batch is aligned again in float32, because its numbers exceed those of float16")
                found = self._emissions(self.model.in_float32(), inputs)
        return found

    def _emissions(self, model: AlignmentModel, inputs: Sequence[EmissionInput]) -> list[npt.NDArray[np.float32]]:
        import torch

        selected = []
        for item, logits in zip(inputs, model.logits([item.samples for item in inputs]), strict=True):
            emission = torch.log_softmax(logits.float(), dim=-1)
            # Only the text's labels are copied from the device, since some languages have thousands of labels.
            selected.append(emission if item.columns is None else _chosen(emission, item, model.blank))
        # Copied after all inputs were launched, because each copy waits for the device.
        return [columns.cpu().numpy() for columns in selected]


def chosen_columns(emission: npt.NDArray[np.float32], item: EmissionInput, blank: int) -> npt.NDArray[np.float32]:
    """What :class:`Emissions` gives for an input, from what it gives for all labels.

    Args:
        emission: shape (frames, labels).
        item: the input.
        blank: the label of the blank.
    """
    import torch

    return _chosen(torch.tensor(emission), item, blank).numpy()


def _chosen(emission: torch.Tensor, item: EmissionInput, blank: int) -> torch.Tensor:
    """The columns of an input. Changes ``emission``."""
    import torch

    columns = emission[:, torch.from_numpy(item.columns).to(emission.device, non_blocking=True)]
    if item.wildcard:
        emission[:, blank] = -torch.inf
        columns = torch.cat([columns, emission.amax(dim=1, keepdim=True)], dim=1)
    return columns


@dataclass(frozen=True)
class AlignmentSource:
    """Identifies an alignment model on a device, and loads it.

    Attributes:
        language: code of the language.
        path: directory with a torchaudio bundle's checkpoint, among other files, or with a hub model's files.
        device: torch's name of the device.
        dtype: float32, float16 or bfloat16; bfloat16 for a CPU that multiplies it natively.
    """

    language: str
    path: Path
    device: str = "cpu"
    dtype: str = "float32"

    def estimated_bytes(self) -> int:
        """Size of the weights in memory, in bytes; of several formats in the directory, the largest counts."""
        patterns = (self._checkpoint().name,) if self.language in TORCHAUDIO_ALIGNMENT else _WEIGHTS
        sizes = [sum(file.stat().st_size for file in self.path.glob(pattern)) for pattern in patterns]
        return max(sizes) // (1 if self.dtype == "float32" else 2)

    def load(self) -> AlignmentModel:
        """Load the model.

        Raises:
            ModelCorrupt: the directory does not contain this model.
        """
        import torch

        limit_torch_threads()
        try:
            network, dictionary = self._from_bundle() if self.language in TORCHAUDIO_ALIGNMENT else self._from_hub()
        except Exception as error:
            raise ModelCorrupt(f"alignment model in {self.path}: cannot be loaded ({error})") from error
        blank = 0
        for label in ("[pad]", "<pad>"):
            blank = dictionary.get(label, blank)
        packed = convert(network.eval()) if (self.device, self.dtype) == ("cpu", "bfloat16") else None
        if packed is not None:
            return AlignmentModel(network.to("meta"), dictionary, blank, together=False, packed=packed)
        if self.dtype != "float32":
            _fold_weight_norm(network)
        network = network.to(device=self.device, dtype=getattr(torch, self.dtype))
        if self.device != "cpu":
            # The worker's threads use other CUDA streams, which do not wait for this thread's stream.
            torch.cuda.synchronize(self.device)
        return AlignmentModel(network, dictionary, blank, together=self.device != "cpu")

    def unload(self, model: AlignmentModel) -> None:
        """Free the device's memory."""
        model.network.to("meta")
        release_cached_memory()

    def _checkpoint(self) -> Path:
        return self.path / TORCHAUDIO_ALIGNMENT[self.language][1]

    def _from_bundle(self) -> tuple[torch.nn.Module, dict[str, int]]:
        import torchaudio.pipelines

        # strict, because torchaudio downloads a missing checkpoint.
        checkpoint = self._checkpoint().resolve(strict=True)
        bundle = getattr(torchaudio.pipelines, TORCHAUDIO_ALIGNMENT[self.language][0])
        options = {"model_dir": str(checkpoint.parent), "file_name": checkpoint.name, "map_location": "cpu"}
        network = bundle.get_model(dl_kwargs=options | {"weights_only": True})
        return network, {label.lower(): index for index, label in enumerate(bundle.get_labels())}

    def _from_hub(self) -> tuple[torch.nn.Module, dict[str, int]]:
        from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2ForCTC

        path = str(self.path)
        network = Wav2Vec2ForCTC.from_pretrained(path, local_files_only=True, weights_only=True)
        vocabulary = Wav2Vec2CTCTokenizer.from_pretrained(path, local_files_only=True).get_vocab()
        return network, {label.lower(): index for label, index in vocabulary.items()}
