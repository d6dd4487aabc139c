"""The machine: driver, architectures, first kernels, and the tests that need a GPU."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from acceptance.conditions import Conditions
from acceptance.rows import Findings

__all__ = ["devices", "models", "tests"]

ROOT = Path(__file__).parent.parent.parent


def devices(conditions: Conditions, findings: Findings) -> None:
    """What the driver, torch and CTranslate2 say of the device, and one kernel of each."""
    import ctranslate2
    import torch

    from whisper_api.engine.worker.device import cuda_problem
    from whisper_api.engine.worker.smoke_kernels import run_ctranslate2, run_torch

    findings.note("torch", f"{torch.__version__}, CUDA {torch.version.cuda}")
    findings.note("CTranslate2", ctranslate2.__version__)
    kind, index = conditions.place.kind, conditions.place.index
    types = sorted(ctranslate2.get_supported_compute_types(kind, index))
    findings.note("compute types of CTranslate2", ", ".join(types))
    if not conditions.is_gpu:
        findings.skip("driver and architecture", "no GPU: --device cpu")
        for library, run in (("torch", run_torch), ("CTranslate2", run_ctranslate2)):
            begun = time.perf_counter()
            run("cpu")
            findings.figure(f"first kernel of {library}", 1000 * (time.perf_counter() - begun), "ms")
        return
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
        findings.note("name, driver, memory, power limit", "; ".join(found.strip().splitlines()))
    except (OSError, subprocess.SubprocessError) as error:
        findings.skip("driver", f"nvidia-smi: {error}")
    major, minor = torch.cuda.get_device_capability(index)
    built = torch.cuda.get_arch_list()
    name = f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"
    # Code of an architecture runs on those of the same major number, and intermediate code (PTX) on all later ones.
    has_code = any(
        (kind == "sm" and int(number[:-1]) == major and int(number[-1]) <= minor)
        or (kind == "compute" and int(number) <= 10 * major + minor)
        for kind, number in re.findall(r"(sm|compute)_(\d+)", " ".join(built))
    )
    findings.fact(f"torch has code for {name}", "yes", ", ".join(built), has_code)
    problem = cuda_problem(index)
    findings.fact("one kernel of torch and of CTranslate2", "both run", problem or "both run", problem is None)


def models(conditions: Conditions, findings: Findings) -> None:
    """Make the random models that most probes use, so that no probe's time depends on which one comes first."""
    names = conditions.names("base", "large-v3-turbo")
    begun = time.perf_counter()
    for name in names:
        conditions.all_models(name)
    findings.figure(f"random models made: {', '.join(names)}", time.perf_counter() - begun, "s")


def tests(conditions: Conditions, findings: Findings) -> None:
    """``pytest -m gpu`` over the files that have such tests."""
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    if not files:
        findings.skip("pytest -m gpu", "the tests are not beside the scripts")
        return
    if not conditions.is_gpu:
        findings.skip("pytest -m gpu", f"no GPU: --device cpu; {len(files)} files have such tests")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-n", "0", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, file=sys.stderr)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)", done.stdout)}
    found = ", ".join(f"{number} {word}" for word, number in counts.items()) or f"pytest ended with {done.returncode}"
    findings.fact("pytest -m gpu", "all pass", found, done.returncode == 0 and "passed" in counts)
    for line in done.stdout.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            findings.fact("a test", "passes", line, False)
