"""CTranslate2 on a CPU behind the code of a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from whisper_api.engine.whisper.ctranslate2 import Ct2Whisper
from whisper_api.engine.whisper.source import WhisperSource


def run_on_ctranslate2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every engine run Whisper by CTranslate2, as on a GPU."""

    def load(source: WhisperSource) -> Ct2Whisper:
        return Ct2Whisper(
            Path(source.path),
            device="cpu",
            device_index=0,
            compute_type="int8",
            threads=source.threads,
            lanes=source.lanes,
            offline=True,
        )

    monkeypatch.setattr(WhisperSource, "load", load)
