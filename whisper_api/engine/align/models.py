"""The wav2vec 2.0 models that words are aligned with: which one for a language, loading it, running it on batches.

Wav2vec 2.0 (Baevski et al., 2020) is run as WhisperX runs it: on the raw waveform, without the feature extractor's
normalisation, one segment at a time on a CPU. On a GPU the segments of a batch go through the convolutions one by one
and through the transformer together, padded, with a mask. Many of these models (all of torchaudio's here) normalise the
first convolution's output over time, so padding the waveform would change their result; behind the convolutions it
does not. In bfloat16 on a CPU it runs as :mod:`whisper_api.engine.align.wav2vec` lays it out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from whisper_api.engine.align.wav2vec import Wav2Vec, convert
from whisper_api.engine.models.catalog import HUB_ALIGNMENT, TORCHAUDIO_ALIGNMENT
from whisper_api.engine.worker.device import limit_torch_threads
from whisper_api.errors import ModelCorrupt, UnknownModel

if TYPE_CHECKING:
    import torch

__all__ = ["AlignmentModel", "AlignmentSource", "EmissionInput", "Emissions", "model_id"]

# Samples that the convolutions need for one frame.
MIN_SAMPLES = 400
_WEIGHTS = ("*.safetensors", "*.bin")


def model_id(language: str) -> str:
    """The bundle or hub id of a language's alignment model.

    Raises:
        UnknownModel: there is none for the language.
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
        samples: (n,) float32 mono audio at 16 kHz.
        columns: (labels,) which labels' log probabilities are wanted.
        wildcard: whether one more column is: the best label of each frame but the blank.
    """

    samples: npt.NDArray[np.float32]
    columns: npt.NDArray[np.int64]
    wildcard: bool


@dataclass(frozen=True, eq=False)
class AlignmentModel:
    """A loaded model. Any number of threads may run it.

    Attributes:
        network: torchaudio's ``Wav2Vec2Model`` or transformers' ``Wav2Vec2ForCTC``, in eval mode; without its weights
            where ``packed`` has them.
        dictionary: lower-case character (or special token) to label.
        blank: the label of the CTC blank.
        together: run the transformer on a whole padded batch rather than on one segment after another.
        packed: the network in bfloat16 for a CPU.
    """

    network: torch.nn.Module
    dictionary: dict[str, int]
    blank: int
    together: bool
    packed: Wav2Vec | None = None

    def logits(self, waveforms: Sequence[npt.NDArray[np.float32]]) -> list[torch.Tensor]:
        """Run the network.

        Args:
            waveforms: (n,) float32 at 16 kHz each.

        Returns:
            (frames, labels) logits of each, on the network's device.
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
        """Whether the network is one whose convolutions and transformer can be called apart."""
        network: Any = self.network
        if self._is_hub():
            return hasattr(network, "wav2vec2") and network.wav2vec2.adapter is None
        return hasattr(network, "feature_extractor") and network.aux is not None


def _filled(waveform: torch.Tensor) -> torch.Tensor:
    """With silence behind it where it is too short for one frame."""
    import torch

    return torch.nn.functional.pad(waveform, (0, max(0, MIN_SAMPLES - waveform.shape[-1])))


def _moved(waveform: npt.NDArray[np.float32], like: torch.Tensor) -> torch.Tensor:
    """A waveform as a tensor of a network's kind, on its device."""
    import torch

    tensor = torch.tensor(waveform)
    if like.is_cuda:
        # From pinned memory the copy runs beside what the device is doing.
        tensor = tensor.pin_memory()
    return tensor.to(like.device, like.dtype, non_blocking=True)


@dataclass(frozen=True)
class Emissions:
    """The work of one batch: log probabilities of the wanted labels for each segment's frames."""

    model: AlignmentModel
    max_items: int = 64
    max_cost: float = 120.0
    memory_key: Hashable = field(default="alignment", compare=False)

    def run(self, inputs: Sequence[EmissionInput]) -> list[npt.NDArray[np.float32]]:
        """Run the model.

        Returns:
            (frames, columns) log softmax for each input, the wildcard's column last.
        """
        import torch

        wanted = []
        with torch.inference_mode():
            for item, logits in zip(inputs, self.model.logits([item.samples for item in inputs]), strict=True):
                emission = torch.log_softmax(logits.float(), dim=-1)
                # Only what the text needs is copied from the device and kept: some languages have thousands of labels.
                columns = emission[:, torch.from_numpy(item.columns).to(emission.device, non_blocking=True)]
                if item.wildcard:
                    emission[:, self.model.blank] = -torch.inf
                    columns = torch.cat([columns, emission.amax(dim=1, keepdim=True)], dim=1)
                wanted.append(columns)
            # Fetched when all is under way: each fetch waits for the device.
            return [columns.cpu().numpy() for columns in wanted]


@dataclass(frozen=True)
class AlignmentSource:
    """Which alignment model, from where, onto which device.

    Attributes:
        language: its code.
        path: directory that holds a torchaudio bundle's checkpoint, perhaps beside others, or a hub model's files.
        device: as torch names it.
        dtype: float32, float16 or bfloat16; the last on a CPU that multiplies it natively.
    """

    language: str
    path: Path
    device: str = "cpu"
    dtype: str = "float32"

    def estimated_bytes(self) -> int:
        """The size of the weights; of the largest set where a directory has them in several formats."""
        patterns = (self._checkpoint().name,) if self.language in TORCHAUDIO_ALIGNMENT else _WEIGHTS
        sizes = [sum(file.stat().st_size for file in self.path.glob(pattern)) for pattern in patterns]
        return max(sizes) // (1 if self.dtype == "float32" else 2)

    def load(self) -> AlignmentModel:
        """Load the model.

        Raises:
            ModelCorrupt: the directory has no model, or not the one it should.
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
        network = network.to(device=self.device, dtype=getattr(torch, self.dtype))
        if self.device != "cpu":
            # The worker's threads run it on streams of their own, which do not wait for this one's.
            torch.cuda.synchronize(self.device)
        return AlignmentModel(network, dictionary, blank, together=self.device != "cpu")

    def unload(self, model: AlignmentModel) -> None:
        """Give the device's memory back."""
        import torch

        model.network.to("meta")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _checkpoint(self) -> Path:
        return self.path / TORCHAUDIO_ALIGNMENT[self.language][1]

    def _from_bundle(self) -> tuple[torch.nn.Module, dict[str, int]]:
        import torchaudio.pipelines

        # torchaudio would fetch a checkpoint that is missing.
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
