"""The script that gives the decoder damaged files: it does so, and notices what goes wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import fuzz_decoder

SCRIPT = Path(fuzz_decoder.__file__)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, bytes]]:
    folder = tmp_path_factory.mktemp("seeds")
    fuzz_decoder.write_seeds(folder)
    return fuzz_decoder.read_seeds(folder)


def test_a_few_mutants_are_decoded_or_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--mutants", "60", "--keep", str(tmp_path / "kept")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("60 mutants of ")
    assert " decoded" in done.stdout
    assert "failed: 0" in done.stdout
    assert not (tmp_path / "kept").exists()


def test_a_mutant_is_always_the_same(seeds: list[tuple[str, bytes]], tmp_path: Path) -> None:
    fuzz_decoder.write_seeds(tmp_path)
    again = fuzz_decoder.read_seeds(tmp_path)
    mutants = [fuzz_decoder.mutant(seeds, 1, number) for number in range(200)]
    assert mutants == [fuzz_decoder.mutant(again, 1, number) for number in range(200)]
    assert len(set(mutants)) > 190
    originals = {content for _, content in seeds}
    assert sum(mutant in originals for mutant in mutants) < 10


def test_the_seeds_decode(seeds: list[tuple[str, bytes]]) -> None:
    assert len(seeds) > 20
    for name, content in seeds:
        assert fuzz_decoder.attempt(content)["outcome"] == "decoded", name


CHILD = """
import sys, time
first, last = map(int, sys.argv[-2:])
for number in range(first, last):
    print(number, flush=True)
    if number == 3:
        import os
        os.abort()
    if number == 5:
        time.sleep(600)
    outcome = "raised: KeyError" if number == 6 else "decoded"
    cpu = 9 if number == 7 else 0.1
    print('{"outcome": "%s", "seconds": 0.1, "cpu": %s, "memory": 1}' % (outcome, cpu), flush=True)
"""


def test_crashes_hangs_errors_and_slow_mutants_are_noticed_and_saved(
    seeds: list[tuple[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child.py"
    child.write_text(CHILD)
    monkeypatch.setattr(fuzz_decoder, "__file__", str(child))
    monkeypatch.setattr(fuzz_decoder, "HANG_SECONDS", 5.0)
    found = fuzz_decoder.Findings(tmp_path / "kept", seeds, 1)
    fuzz_decoder.watch("folder", 0, 10, found)
    assert [line.split(" ", 2)[1] for line in found.failed] == ["3", "5", "6", "7"]
    for line, why in zip(found.failed, ("ended its process", "more than", "KeyError", "CPU time"), strict=True):
        assert why in line
    assert sum(found.outcomes.values()) == 8
    for number in (3, 5, 6, 7):
        saved = tmp_path / "kept" / f"mutant-1-{number}"
        assert saved.read_bytes() == fuzz_decoder.mutant(seeds, 1, number)
