"""The counts and reports of the measuring scripts. No test checks what they measure."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import pytest

from whisper_api.schema import SAMPLE_RATE

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from measuring import (
    SHAPES,
    Ceilings,
    Comparison,
    Pair,
    Piece,
    Report,
    Sample,
    arguments,
    clip,
    machine,
    median,
    one_process,
    recording,
    resident,
    sample,
    table,
    take_turns,
    usage_of,
    wav2vec2_floor,
    whisper_floor,
    word_errors,
)
from measuring.children import environment
from measuring.speech import sample_call_text

CEILINGS = Ceilings(int8=700e9, fp32=90e9, bf16=400e9, read=35e9)


def options(**values: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"runs": 3, "json": None, "plot": None, **values})


def samples(*walls: float, **values: float) -> list[Sample]:
    return [Sample(wall=wall, cpu=2 * wall, peak_mb=100, values=dict(values), load=0.5, others=0.01) for wall in walls]


def compared(pair: Pair, ours: float, peer: float) -> Comparison:
    return Comparison("work", {"peer": samples(peer, words=20), "ours": samples(ours, words=21)}, [pair])


# --- samples ---


def test_sides_take_turns_and_the_first_round_is_not_kept() -> None:
    order: list[str] = []

    def side(name: str) -> Sample:
        order.append(name)
        return Sample(wall=float(len(order)))

    kept = take_turns({"a": lambda: side("a"), "b": lambda: side("b")}, 2, progress=False)
    assert order == ["a", "b"] * 3
    assert [run.wall for run in kept["a"]] == [3.0, 5.0]
    assert [run.wall for run in kept["b"]] == [4.0, 6.0]


def test_median_leaves_out_what_was_not_measured() -> None:
    runs = [Sample(wall=1.0, values={"words": 0}), Sample(wall=9.0), Sample(wall=2.0, values={"words": 4})]
    assert median(runs, "wall") == 2.0
    assert median(runs, "cpu") is None
    assert median(runs, "words") == 2.0
    assert median(runs, "tokens") is None
    assert median([], "wall") is None


def test_a_sample_times_what_is_done_while_it_is_open() -> None:
    with sample([os.getpid()]) as run:
        for _ in range(300_000):
            pass
    assert run.wall > 0
    assert run.cpu >= 0
    assert run.others is None or 0 <= run.others <= 1


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="counted in /proc")
def test_a_process_is_counted_with_its_children() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(input())'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        own = usage_of([os.getpid()])
        cpu, peak = usage_of([process.pid])
        assert cpu >= 0
        assert 0 < peak < own[1]
        process.communicate(b"end\n")
    assert usage_of([process.pid]) == (0.0, 0.0)


# --- children ---


def test_a_resident_side_does_one_job_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adding.py").write_text(
        "def side(start):\n"
        "    total = [start]\n"
        "    def job(more):\n"
        "        print('libraries print as they like')\n"
        "        total[0] += more\n"
        "        return {'text': 'ä' * total[0], 'values': {'total': total[0]}, 'extra': [1]}\n"
        "    return job\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with resident("adding:side", start=1) as side:
        first, second = side.run(more=2), side.run(more=3)
    assert (first.text, first.values, first.kept) == ("äää", {"total": 3}, {"extra": [1]})
    assert second.values == {"total": 6}
    assert side.start_seconds > 0
    assert second.peak_mb > 1 or sys.platform != "linux"


def test_a_side_that_fails_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing.py").write_text("def side():\n    return lambda: 1 / 0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SystemExit, match="failing:side ended with status 1"), resident("failing:side") as side:
        side.run()


def test_a_process_is_measured_to_its_end() -> None:
    run = one_process([sys.executable, "-c", "print('first'); print('second')"])
    assert run.text == "first\nsecond\n"
    assert run.wall >= run.kept["first"] > 0
    assert run.peak_mb > 1


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(SystemExit, match=r"(?s)no such thing.*status 1"):
        one_process([sys.executable, "-c", "raise ValueError('no such thing')"])


# --- accuracy ---


def pieces(*texts: str) -> list[Piece]:
    return [Piece(f"{index}.wav", index, index + 1, text) for index, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three four five", (0, {"0.wav": 0, "1.wav": 0})),
        ("one too three four five", (1, {"0.wav": 1, "1.wav": 0})),
        ("one two four five", (1, {"0.wav": 0, "1.wav": 1})),
        ("one two three four five six", (1, {"0.wav": 0, "1.wav": 1})),
        ("zero one two three four five", (1, {"0.wav": 1, "1.wav": 0})),
        ("one three five", (2, {"0.wav": 1, "1.wav": 1})),
        ("", (5, {"0.wav": 2, "1.wav": 3})),
    ],
)
def test_word_errors_are_counted_for_each_piece(text: str, expected: tuple[int, dict[str, int]]) -> None:
    errors, words, by_piece = word_errors(pieces("One two", "Three four five"), text, str.lower)
    assert (errors, by_piece) == expected
    assert words == 5
    assert sum(by_piece.values()) == errors


def test_word_errors_without_a_reference_are_what_was_added() -> None:
    assert word_errors(pieces(""), "one two", str.lower) == (2, 0, {"0.wav": 2})
    assert word_errors([], "", str.lower) == (0, 0, {})


def test_word_errors_agree_with_the_plain_recurrence() -> None:
    import random

    chance = random.Random(4)
    for _ in range(50):
        first, second = ([chance.choice("abc") for _ in range(chance.randrange(9))] for _ in range(2))
        rows = [list(range(len(second) + 1))]
        for index, word in enumerate(first):
            rows.append([index + 1])
            for at, other in enumerate(second):
                rows[-1].append(min(rows[-2][at + 1] + 1, rows[-1][at] + 1, rows[-2][at] + (word != other)))
        errors, _, by_piece = word_errors(pieces(" ".join(first)), " ".join(second), str)
        assert errors == rows[-1][-1] == sum(by_piece.values())


def test_a_clip_holds_whole_turns(tmp_path: Path) -> None:
    found = clip(tmp_path, 10.0)
    assert found.pieces[0].text in sample_call_text()
    assert found.pieces[0].text.startswith("And I'm Sheila in Texas")
    assert found.pieces[0].text.endswith("there isn't that much difference.")
    with wave.open(str(found.path)) as file:
        assert file.getnframes() == 10 * SAMPLE_RATE


def test_a_recording_is_made_of_whole_files_over_and_over(tmp_path: Path, sample_call: Path) -> None:
    (tmp_path / "short.wav").write_bytes(clip(tmp_path, 5.0).path.read_bytes())
    items = [
        {"file": "short.wav", "language": "en", "text": "And I'm Sheila."},
        {"file": "elsewhere.wav", "language": "fr", "text": "Bonjour."},
        {"file": "silent.wav", "language": None, "text": ""},
    ]
    (tmp_path / "manifest.json").write_text(json.dumps(items))
    found = recording(tmp_path, 80.0, tmp_path)
    assert [piece.name for piece in found.pieces] == ["sample.wav", "short.wav"] * 2 + ["short.wav"]
    assert found.seconds == 80.0
    assert all(a.end < b.start for a, b in zip(found.pieces, found.pieces[1:], strict=False))
    assert found.speech_seconds == pytest.approx(75, abs=0.1)
    with wave.open(str(found.path)) as file, wave.open(str(sample_call)) as call:
        assert file.getnframes() == 80 * SAMPLE_RATE
        both = file.readframes(1000), call.readframes(1000)
    assert both[0][:200] == both[1][:200]


# --- the cost model ---


def test_the_floor_is_that_of_the_published_shape() -> None:
    """PERFORMANCE: base, 30 s: 87 GFLOP in the encoder, a third of it attention, 9.4 more for keys and values."""
    parts = whisper_floor(SHAPES["base"], Ceilings(1e9, 1e9, 1e9, 1e30), seconds=30, tokens=100)
    assert parts["encoder"] == pytest.approx(87 + 9.4, rel=0.02)
    assert parts["decoder"] == pytest.approx(100 * 0.116, rel=0.02)


def test_a_beam_computes_more_and_reads_the_same() -> None:
    one, five = (whisper_floor(SHAPES["base"], CEILINGS, seconds=30, tokens=100, beam=beam) for beam in (1, 5))
    assert one["encoder"] == five["encoder"]
    assert one["decoder"] < five["decoder"] < 5 * one["decoder"]
    batch = whisper_floor(SHAPES["base"], CEILINGS, seconds=30, tokens=100, batch=8)
    assert batch["decoder"] < one["decoder"]


def test_the_floor_grows_with_the_audio() -> None:
    short, long = (whisper_floor(SHAPES["base"], CEILINGS, seconds=s, tokens=100) for s in (10, 600))
    assert long["encoder"] > 60 * short["encoder"]
    assert wav2vec2_floor(CEILINGS, 20) == pytest.approx(2 * wav2vec2_floor(CEILINGS, 10))


# --- reports ---


def test_a_table_is_markdown() -> None:
    assert table(["", "s"], [["ours", "1"]]) == "|  | s |\n|---|---|\n| ours | 1 |"


def test_a_comparison_tells_medians_ratio_targets_and_share_of_the_floor() -> None:
    sides = {"peer": samples(8, 10, 90, words=20), "ours": samples(1.9, 2, 7, words=21)}
    text = str(Comparison("work", sides, [Pair("ours", "peer", "wall", 3, 6)], {"ours": 1.0}, ["A note."]))
    assert "### work" in text
    assert "| peer | 10 | 20 | 100 | 20 |  |" in text
    assert "| ours | 2 | 4 | 100 | 21 | 25% of 1 |" in text
    assert "| ours | peer | s | 5.00 | at least 3 reached | at least 6 MISSED |" in text
    assert "A note." in text
    assert "WARNING" not in text


@pytest.mark.parametrize(
    ("pair", "ours", "peer", "ratio", "missed"),
    [
        (Pair("ours", "peer", "wall", 3), 1, 3, 3.0, False),
        (Pair("ours", "peer", "wall", 3), 1, 2.9, 2.9, True),
        (Pair("ours", "peer", "wall", 3, lower=True), 6, 2, 3.0, False),
        (Pair("ours", "peer", "wall", 2, lower=True), 6, 2, 3.0, True),
        (Pair("ours", "", "wall", 2, lower=True), 3, 2, 3.0, True),
        (Pair("ours", "peer", "words"), 1, 1, 20 / 21, False),
    ],
)
def test_targets_are_met_or_missed(pair: Pair, ours: float, peer: float, ratio: float, missed: bool) -> None:
    one = compared(pair, ours, peer)
    assert pair.ratio(one.samples) == pytest.approx(ratio)
    assert bool(one.missed()) == missed
    assert all("work: ours" in line for line in one.missed())


def test_a_side_that_was_left_out_misses_no_target() -> None:
    one = Comparison("work", {"ours": samples(1)}, [Pair("ours", "peer", "wall", 3)])
    assert one.missed() == []
    assert "target" not in str(one)


@pytest.mark.parametrize(
    ("words", "ours", "missed"), [(1000, 10.3, False), (1000, 10.4, True), (30, 20.0, False), (0, 9.0, False)]
)
def test_speed_bought_with_word_errors_is_a_miss(words: int, ours: float, missed: bool) -> None:
    sides = {"ours": samples(1, **{"WER %": ours}), "peer": samples(9, **{"WER %": 10.0})}
    sides["ours"][0].kept["reference words"] = words
    one = Comparison("work", sides, [Pair("ours", "peer", "wall", 3)])
    assert bool(one.missed()) == missed


def test_speed_bought_with_wrong_speakers_is_a_miss() -> None:
    sides = {"ours": samples(1, **{"DER %": 18.6}), "peer": samples(9, **{"DER %": 18.0})}
    (line,) = Comparison("work", sides, [Pair("ours", "peer", "wall", 3)]).missed()
    assert line == "work: ours against peer: DER % 18.6, the peer's 18.0: 0.5 points more are allowed"


def test_busy_neighbours_are_reported() -> None:
    runs = samples(1)
    runs[0].others = 0.3
    assert "WARNING: other processes used up to 30% of the CPUs" in str(Comparison("work", {"ours": runs}))


def test_the_record_keeps_every_sample_and_the_status_tells_of_a_miss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "record.json"
    report = Report("trial", options(json=path, audio=tmp_path))
    report.note("ceilings", vars(CEILINGS))
    report.add(compared(Pair("ours", "peer", "wall", 3), 1, 2))
    assert report.finish() == 1
    assert "MISSED: work: ours against peer: 2.00, wanted at least 3" in capsys.readouterr().out
    kept = json.loads(path.read_text())
    assert kept["name"] == "trial"
    assert kept["machine"]["cpus"] == machine().cpus
    assert kept["ceilings"]["read"] == 35e9
    (comparison,) = kept["comparisons"]
    assert comparison["pairs"][0]["ratio"] == 2.0
    assert comparison["samples"]["ours"] == [
        {
            "wall": 1,
            "cpu": 2,
            "peak_mb": 100,
            "values": {"words": 21},
            "text": None,
            "kept": {},
            "load": 0.5,
            "others": 0.01,
        }
    ]


def test_a_report_without_a_miss_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("trial", options())
    report.add(compared(Pair("ours", "peer", "wall", 2), 1, 2))
    assert report.finish() == 0
    assert "No target was missed." in capsys.readouterr().out


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.png"
    report = Report("trial", options(plot=path))
    report.add(compared(Pair("ours", "peer", "wall", 2), 1, 2))
    report.add(Comparison("nothing was compared", {"ours": samples(1, 2)}))
    report.finish()
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    report = Report("trial", options(plot=tmp_path / "plot.png"))
    report.add(compared(Pair("ours", "peer"), 1, 2))
    with pytest.raises(SystemExit, match="pip install matplotlib"):
        report.finish()


# --- the scripts ---


def test_the_stand_in_for_nltk_cuts_sentences() -> None:
    import peers

    text = "One is 1.5 long. Two?  Three! and more"
    spans = peers.Sentences().span_tokenize(text)
    assert [text[begin:end] for begin, end in spans] == ["One is 1.5 long.", "Two?", "Three!", "and more"]


@pytest.mark.parametrize(
    ("theirs", "told"),
    [
        ([("a", 1.0), ("b", 2.0)], "median difference 0 ms, 0 differ, 0 by more than a frame"),
        ([("a", 1.0), ("b", 2.1)], "Starts of 2 words: median difference 50 ms, 1 differ, 1 by more than a frame"),
        ([("a", 1.0), ("b", None)], "Starts of 1 words"),
        ([("a", 1.0)], "not the same: 2 here, 1 there"),
    ],
)
def test_word_starts_are_compared(theirs: list[tuple[str, float | None]], told: str) -> None:
    import bench_stages

    ours = [("a", 1.0), ("b", 2.0)]
    assert told in bench_stages.starts_apart(Sample(kept={"words": ours}), Sample(kept={"words": theirs}))


def test_the_diarization_error_is_that_of_all_files_together(sample_call: Path) -> None:
    import bench_stages

    lines = [line.split() for line in sample_call.with_suffix(".rttm").read_text().splitlines()]
    turns = [(float(line[3]), float(line[3]) + float(line[4]), line[7]) for line in lines]
    perfect = bench_stages.error_rate([sample_call], {str(sample_call): turns})
    assert perfect == {"DER %": 0.0, "seconds of audio": pytest.approx(30)}
    nobody = bench_stages.error_rate([sample_call], {str(sample_call): []})
    assert nobody["DER %"] == 100.0


def test_a_recording_becomes_mp3(tmp_path: Path, sample_call: Path) -> None:
    import bench_stages
    from faster_whisper.audio import decode_audio

    path = bench_stages.write_mp3(sample_call, tmp_path / "call.mp3")
    assert len(decode_audio(str(path))) == pytest.approx(30 * SAMPLE_RATE, rel=0.01)


@pytest.mark.parametrize(
    "name",
    [
        "bench_events",
        "bench_first_text",
        "bench_latency",
        "bench_throughput",
        "bench_stages",
        "bench_start",
        "bench_memory",
    ],
)
def test_each_script_tells_its_arguments(name: str) -> None:
    script = Path(__file__).parent.parent / "scripts" / f"{name}.py"
    told = subprocess.run([sys.executable, str(script), "--help"], check=True, capture_output=True, text=True).stdout
    assert all(flag in told for flag in ("--runs", "--json", "--plot", "--audio", f"scripts/{name}.py"))


def test_the_shared_arguments_have_defaults() -> None:
    parsed = arguments("what it does", runs=3).parse_args([])
    assert (parsed.runs, parsed.quick, parsed.audio, parsed.json, parsed.plot) == (3, False, None, None, None)


def test_compiled_modules_lie_where_only_this_user_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory = Path(environment()["PYTHONPYCACHEPREFIX"])
    assert tmp_path / "cache" in directory.parents
    assert directory.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", "elsewhere")
    assert environment()["PYTHONPYCACHEPREFIX"] == "elsewhere"
