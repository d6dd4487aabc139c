"""The program of a server with random weights: ``whisper-api`` whose windows have a fixed number of tokens.

While the file of HOLD exists, batches wait; while that of FAIL exists, the next batch ends in a device-side assert.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fixed_tokens
from measuring.children import SCRIPTS

__all__ = ["FAIL", "HOLD", "PROGRAM", "main", "variables"]

HOLD, FAIL, TOKENS, DEVICE = "ACCEPTANCE_HOLD", "ACCEPTANCE_FAIL", "ACCEPTANCE_TOKENS", "ACCEPTANCE_DEVICE"
PROGRAM = ("-c", "from acceptance.server import main; main()")
SECONDS = 0.02


def variables(tokens: int, device: str, hold: Path | None = None, fail: Path | None = None) -> dict[str, str]:
    """Environment variables of the program.

    Args:
        tokens: of each window.
        device: as torch names it.
        hold: the first file; None for none.
        fail: the second file.
    """
    paths = os.pathsep.join(filter(None, (str(SCRIPTS), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": paths, TOKENS: str(tokens), DEVICE: device, HOLD: str(hold or ""), FAIL: str(fail or "")}


def main() -> None:
    """Run ``whisper-api`` with the arguments of this process."""
    from whisper_api import Engine
    from whisper_api.cli.main import main as command

    hold, fail = (Path(os.environ[name]) if os.environ.get(name) else None for name in (HOLD, FAIL))
    run = fixed_tokens.FixedOperation.run

    def run_or_fail(operation: fixed_tokens.FixedOperation, inputs: Sequence[Any]) -> list[Any]:
        while hold is not None and hold.exists():
            time.sleep(SECONDS)
        if fail is not None and fail.exists():
            _assert_on(os.environ[DEVICE])
        return run(operation, inputs)

    # The models directory lacks what the random models take the place of; no registry is to be asked for it.
    made = Engine.from_config
    Engine.from_config = lambda config, **given: made(config, **{"offline": True, **given})  # type: ignore[method-assign]
    fixed_tokens.FixedOperation.run = run_or_fail  # type: ignore[assignment,method-assign]
    with fixed_tokens.our_tokens_fixed(int(os.environ[TOKENS]), fixed_tokens.Tally()):
        raise SystemExit(command())


def _assert_on(device: str) -> None:
    """Let a kernel fail an assertion, which kills the context. A CPU has none, so the error is raised by hand."""
    import torch

    if device == "cpu":
        raise RuntimeError("CUDA error: device-side assert triggered")
    torch.zeros(1, device=device)[torch.tensor([7], device=device)].sum()
    torch.cuda.synchronize(device)
