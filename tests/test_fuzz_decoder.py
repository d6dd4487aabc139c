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


def test_crashes_hangs_errors_and_slow_mutants_are_noticed_and_saved(
    seeds: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    found = fuzz_decoder.Findings(tmp_path / "kept", seeds, 1)
    outcomes = {
        0: ("decoded", 0.1),
        1: ("refused: InvalidAudio", 0.1),
        2: ("refused: AudioTooLong", 0.1),
        3: ("refused: InvalidAudio, it brings libav down", 0.1),
        5: ("refused: InvalidAudio, libav has hung", 0.1),
        6: ("raised: KeyError: 'x'", 0.1),
        7: ("decoded", 9.0),
        8: ("not finite", 0.1),
    }
    for number, (outcome, cpu) in outcomes.items():
        found.note(number, {"outcome": outcome, "seconds": 0.1, "cpu": cpu, "memory": 1})
    assert [line.split(" ", 2)[1] for line in found.failed] == ["3", "5", "6", "7", "8"]
    assert sum(found.outcomes.values()) == len(outcomes)
    for number in (3, 5, 6, 7, 8):
        saved = tmp_path / "kept" / f"mutant-1-{number}"
        assert saved.read_bytes() == fuzz_decoder.mutant(seeds, 1, number)
