"""The process of a probe."""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
from pathlib import Path

from gpu_gauge import require_cuda

from acceptance.conditions import Conditions
from acceptance.rows import Findings

__all__ = ["main"]


def main() -> None:
    """Run the probe that the arguments name: module and function, conditions, and the file for its rows."""
    function, conditions, path = sys.argv[1:]
    faulthandler.enable()
    given = Conditions(**json.loads(conditions))
    findings = Findings(Path(path), judges=given.is_gpu and not given.tiny)
    require_cuda(given.device)
    module, _, name = function.partition(":")
    getattr(importlib.import_module(module), name)(given, findings)
    findings.end()
    sys.stdout.flush()
    sys.stderr.flush()
    # Destructors of libraries may crash when the interpreter ends.
    os._exit(0)
