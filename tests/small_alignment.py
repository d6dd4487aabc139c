"""Alignment models of the original kinds with random weights, narrow and shallow: they cost little to load and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from whisper_api.engine.align.models import model_id

CONVOLUTIONS = [(24, 10, 5), (24, 3, 2), (24, 3, 2), (24, 3, 2), (24, 3, 2), (24, 2, 2), (24, 2, 2)]
# Parameters of torchaudio's ``wav2vec2_model`` that differ from those of the published models.
SMALL: dict[str, Any] = {
    "extractor_conv_layer_config": CONVOLUTIONS,
    "encoder_embed_dim": 32,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 2,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_ff_interm_features": 48,
}


def sharpened(weight: Any) -> Any:
    """Scale weights up, since random weights give flat probabilities and those of a trained model are peaked."""
    return weight * 40.0


def shrink_bundle(language: str, patch: pytest.MonkeyPatch) -> Any:
    """Let torchaudio's bundle of a language be the small model while the patch holds.

    Returns:
        The bundle.
    """
    import torchaudio

    # torchaudio has no public way to the parameters of a bundle.
    bundle = getattr(torchaudio.pipelines, model_id(language))
    patch.setattr(bundle, "_params", bundle._params | SMALL)  # noqa: SLF001
    return bundle


def save_bundle(directory: Path, language: str, patch: pytest.MonkeyPatch) -> None:
    """A torchaudio checkpoint of random weights, with the additional rows that the published ones have.

    Args:
        directory: where the checkpoint is written; it does not exist yet.
        language: whose bundle.
        patch: as long as it holds, torchaudio can load the checkpoint.
    """
    import torch
    import torchaudio

    bundle = shrink_bundle(language, patch)
    torch.manual_seed(1)
    state = torchaudio.models.wav2vec2_model(**bundle._params).state_dict()  # noqa: SLF001
    removed = set(bundle._remove_aux_axis)  # noqa: SLF001 - as are the rows and the file name
    for key in ("aux.weight", "aux.bias"):
        rows = iter(sharpened(state[key]))
        count = len(state[key]) + len(removed)
        state[key] = torch.stack(
            [torch.full_like(state[key][0], 9e9) if i in removed else next(rows) for i in range(count)]
        )
    directory.mkdir(parents=True)
    torch.save(state, directory / Path(bundle._path).name)  # noqa: SLF001
