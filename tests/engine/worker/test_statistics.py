"""What an engine tells of its devices' work."""

from __future__ import annotations

from pathlib import Path

import pytest

from whisper_api import Engine, TranscriptionOptions


@pytest.mark.models
def test_an_engine_counts_its_batches_and_models(engine: Engine, short_call: Path) -> None:
    (before,) = engine.statistics()
    busy, batches, items = before.counts.busy_seconds, before.counts.batches, before.counts.items
    engine.transcribe(short_call, TranscriptionOptions(language="en", diarize=False))
    (after,) = engine.statistics()
    assert after.counts.busy_seconds > busy
    assert after.counts.batches > batches
    assert after.counts.items - items >= after.counts.batches - batches
    assert after.counts.room >= after.counts.items
    assert after.counts.out_of_memory == 0
    assert (after.device, after.lanes) == (engine.device.torch_name, engine.whisper.lanes)
    # The free memory, and which encoder was chosen, are told of a GPU only.
    on_cpu = engine.device.kind == "cpu"
    assert (after.free_bytes is None, after.encoder == "") == (on_cpu, on_cpu)
    assert after.model_loads >= len(engine.models.resident()) > 0
