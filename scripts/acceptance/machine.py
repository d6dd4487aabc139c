"""The machine: driver, architectures, first kernels, and the tests that need a GPU."""

from __future__ import annotations

import mmap
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from acceptance.conditions import Conditions
from acceptance.rows import Findings

__all__ = ["devices", "models", "tests"]

# NVIDIA's format of code for several architectures: its mark, the kinds of entries, and where an entry has what.
FAT_BINARY = b"\x50\xed\x55\xba"
PTX, ELF = 1, 2
ENTRY_BYTES, ARCHITECTURE_AT = 64, 28
COMPILE_SECONDS = 120
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
        own, compiled = _architectures()
        findings.note("CTranslate2's code", f"for {own}, intermediate code for {compiled}")
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
    own, compiled = _architectures()
    native = any(arch // 10 == major and arch % 10 <= minor for arch in own)
    found = f"code for {', '.join(map(str, own))}, intermediate code for {', '.join(map(str, compiled)) or 'none'}"
    runs = native or any(arch <= 10 * major + minor for arch in compiled)
    findings.fact(f"CTranslate2 has code for {name}", "yes, or intermediate code", found, runs)
    findings.note("the driver compiles CTranslate2's kernels", "no" if native else "yes, once")
    with tempfile.TemporaryDirectory() as cache:
        for state in ("compiled", "from the driver's cache"):
            findings.figure(f"first kernel of CTranslate2, {state}", _first_kernel(conditions.device, cache), "s")


def _architectures() -> tuple[list[int], list[int]]:
    """The architectures for which CTranslate2's library has machine code, and those of its intermediate code (PTX)."""
    import ctranslate2

    packages = Path(ctranslate2.__file__).parent.parent
    (library,) = packages.glob("ctranslate2.libs/libctranslate2*.so*")
    found: dict[int, set[int]] = {PTX: set(), ELF: set()}
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(FAT_BINARY)
        while at >= 0:
            # The header states its own size and the size of all entries together. Each entry begins with a header, too.
            header, size = struct.unpack_from("<HQ", data, at + 6)
            entry, end = at + header, at + header + size
            while entry + ENTRY_BYTES <= min(end, len(data)):
                kind, _, header, size = struct.unpack_from("<HHIQ", data, entry)
                if kind not in found:
                    break
                found[kind].update(struct.unpack_from("<I", data, entry + ARCHITECTURE_AT))
                entry += header + size
            at = data.find(FAT_BINARY, at + 1)
    return sorted(found[ELF]), sorted(found[PTX])


def _first_kernel(device: str, cache: str) -> float:
    """Seconds of CTranslate2's first kernel in a new process with this directory for what the driver compiles."""
    code = (
        "import sys, time, torch;"
        "from whisper_api.engine.worker.smoke_kernels import run_ctranslate2; torch.ones(1, device=sys.argv[1]);"
        "begun = time.perf_counter(); run_ctranslate2(sys.argv[1]); print(time.perf_counter() - begun)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, device],
        env={**os.environ, "CUDA_CACHE_PATH": cache},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=COMPILE_SECONDS,
    )
    return float(done.stdout)


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
