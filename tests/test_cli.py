"""The command line with real files, real models and real exit codes."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import docx
import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from whisper_api.cli.flags import add_struct_flags, struct_of
from whisper_api.cli.main import COMMANDS, main
from whisper_api.cli.outputs import FileWork, Outputs, output_stems, write_whole
from whisper_api.cli.progress import ProgressLine, clock_time
from whisper_api.errors import ModelUnavailable, StorageFull
from whisper_api.formats import DOCUMENTS, FORMATS
from whisper_api.options import TranscriptionOptions

ROOT = Path(__file__).parents[1]
FAST = ("--model", "tiny.en", "--language", "en", "--no-align", "--no-diarize")

Run = Callable[..., int]


@pytest.fixture(autouse=True)
def _plain_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory and an environment in which nothing is configured."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    for name in [*os.environ]:
        if name.startswith(("WHISPER_", "RUST_LOG")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture(scope="session")
def clip(sample_call: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seconds in which somebody speaks."""
    path = tmp_path_factory.mktemp("audio") / "clip.wav"
    repeat_wav(sample_call, path, begin=6.0, seconds=5.0)
    return path


def repeat_wav(source: Path, target: Path, *, begin: float, seconds: float, times: int = 1) -> None:
    with wave.open(str(source)) as wav, wave.open(str(target), "wb") as out:
        out.setparams(wav.getparams())
        wav.setpos(int(begin * wav.getframerate()))
        out.writeframes(wav.readframes(int(seconds * wav.getframerate())) * times)


@pytest.fixture
def transcribe(models_dir: Path, tiny_en_model_dir: Path) -> Run:
    def run(*arguments: str | Path) -> int:
        return main(["transcribe", "--models-dir", str(models_dir), "--offline", *FAST, *map(str, arguments)])

    return run


def options_of(*arguments: str) -> TranscriptionOptions:
    parser = argparse.ArgumentParser()
    add_struct_flags(parser, TranscriptionOptions)
    return struct_of(parser.parse_args(arguments), TranscriptionOptions)


# --- flags ---


def test_every_option_has_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "--help"]) == 0
    text = capsys.readouterr().out
    for field in msgspec.structs.fields(TranscriptionOptions):
        assert f"--{field.name.replace('_', '-')}" in text
    for name in ("--no-align", "--no-diarize", "--format", "--output-dir", "--device", "--models-dir", "--quiet"):
        assert name in text


def test_flags_not_given_leave_the_defaults() -> None:
    assert options_of() == TranscriptionOptions()


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--model", "base"], "model", "base"),
        (["--diarize"], "diarize", True),
        (["--no-diarize"], "diarize", False),
        (["--no-align"], "align", False),
        (["--beam-size", "3"], "beam_size", 3),
        (["--temperature", "0.2"], "temperature", 0.2),
        (["--vad-onset", "0.4"], "vad_onset", 0.4),
        (["--vad", "none"], "vad", "none"),
        (["--task", "translate"], "task", "translate"),
        (["--num-speakers", "2"], "num_speakers", 2),
        (["--prompt", "100 % - Café"], "prompt", "100 % - Café"),
    ],
)
def test_flags_give_typed_options(arguments: list[str], field: str, value: object) -> None:
    assert options_of(*arguments) == TranscriptionOptions(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["dance"], "dance"),
        (["transcribe"], "FILE"),
        (["transcribe", "x.wav", "--beam-size", "0"], "a whole number from 1 to 32"),
        (["transcribe", "x.wav", "--temperature", "warm"], "a number from 0 to 1"),
        (["transcribe", "x.wav", "--task", "dance"], "transcribe"),
        (["transcribe", "x.wav", "--format", "srt,pdf"], "pdf"),
        (["transcribe", "x.wav", "--format", ","], "srt"),
        (["transcribe", "x.wav", "--max-line-width", "0"], "at least 1"),
        (["transcribe", "x.wav", "--subtitle-preset", "tf1"], "netflix"),
        (["transcribe", "x.wav", "--min-duration", "2", "--max-duration", "1"], "more than max_duration"),
        (["transcribe", "x.wav", "--compute-type", "float8"], "int8"),
        (["transcribe", "x.wav", "--device", "tpu"], "tpu"),
        (["transcribe", "x.wav", "--batch-size", "none"], "a whole number, at least 1 or auto"),
        (["transcribe", "x.wav", "--hf-token", "hf_x"], "--hf-token"),
        (["models"], "COMMAND"),
        (["models", "pull"], "NAME"),
        (["--log-level", "loud", "doctor"], "loud"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_wrong(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


def test_no_flag_takes_a_token_and_help_says_where_tokens_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["transcribe"], ["doctor"], ["models", "pull"]):
        assert main([*command, "--help"]) == 0
        text = capsys.readouterr().out
        assert "token" not in " ".join(word for word in text.split() if word.startswith("-"))
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "HF_TOKEN" in text
    assert "WHISPER_HF_TOKEN_FILE" in text
    assert all(f"    {name} " in text for name in COMMANDS)


def test_the_version_flag_prints_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    from whisper_api import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"whisper-api {__version__}\n"


@pytest.mark.parametrize("order", ["before", "after"])
def test_the_configuration_is_read_and_its_errors_are_reported(order: str, capsys: pytest.CaptureFixture[str]) -> None:
    def listing(config: str) -> int:
        Path("my.conf").write_text(config)
        flag, command = ["--config", "my.conf"], ["models", "list", "--installed"]
        return main([*flag, *command] if order == "before" else [*command, *flag])

    assert listing('WHISPER_MODELS_DIR = "here"\nWHISPER_MODLE = "x"') == 0
    shown = capsys.readouterr()
    assert str(Path.cwd() / "here") in shown.out
    assert "WHISPER_MODLE" in shown.err
    assert listing("WHISPER_API_PORT = 99999999") == 2
    assert "WHISPER_API_PORT" in capsys.readouterr().err


def test_output_that_is_no_terminal_is_utf8_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["--version"]) == 0
    print("é 日本")
    out.flush()
    assert out.buffer.getvalue().decode("utf-8").endswith("é 日本\n")


# --- where transcripts go ---


@hypothesis.given(
    st.lists(st.sampled_from(["a.wav", "b/a.wav", "A.mp3", "a-2.wav", "a-2-2.ogg", "a-3.wav", "-", "stdin.wav"]))
)
def test_no_two_inputs_have_the_same_output(inputs: list[str]) -> None:
    stems = output_stems(inputs, Path("out"), ["srt"])
    assert len(stems) == len(inputs)
    assert len({stem.casefold() for stem in stems}) == len(stems)
    own = ["stdin" if name == "-" else Path(name).stem for name in inputs]
    for index, stem in enumerate(own):
        is_first = stem.casefold() not in {other.casefold() for other in own[:index]}
        assert (stems[index] == stem) == is_first


LETTERS = st.sampled_from("aÉe\u0301会𝄞.- ")


@hypothesis.settings(deadline=None)
@hypothesis.given(st.lists(st.text(LETTERS, min_size=1, max_size=255), min_size=1, max_size=4), st.booleans())
def test_every_input_has_files_of_its_own_that_can_be_written(names: list[str], long: bool) -> None:
    names = [cut(name * 255 if long else name, 250) + ".wav" for name in names]
    with tempfile.TemporaryDirectory() as directory:
        stems = output_stems(names, Path(directory), ["srt", "json"])
        for number, stem in enumerate(stems):
            for extension in ("srt", "json"):
                write_whole(Path(directory) / f"{stem}.{extension}", str(number))
        assert len([*Path(directory).iterdir()]) == 2 * len(names)
        for number, stem in enumerate(stems):
            assert (Path(directory) / f"{stem}.srt").read_text() == str(number)


def cut(name: str, size: int) -> str:
    return name.encode()[:size].decode(errors="ignore") or "x"


def test_no_file_is_written_over_an_input() -> None:
    for name in ("talk.json", "talk-2.json", "other.wav"):
        Path(name).touch()
    Path("link.srt").symlink_to("other.wav")
    inputs = ["talk.json", "talk-2.json", "other.wav", str(Path("link.mp3").absolute())]
    assert output_stems(inputs, Path(), ["json"]) == ["talk-3", "talk-2-2", "other", "link"]
    assert output_stems(inputs, Path(), ["srt"]) == ["talk", "talk-2", "other", "link-2"]
    # Output to standard output or to another directory overwrites nothing.
    assert output_stems(inputs, None, ["json"]) == output_stems(inputs, Path("out"), ["json"])[:4]
    assert output_stems(["talk.json"], Path("out"), ["json"]) == ["talk"]


@pytest.mark.parametrize(
    ("name", "stem"), [(".wav", ".wav"), ("a..wav", "a."), ("a.b.wav", "a.b"), ("a. .wav", "a. "), ("...wav", "..")]
)
def test_odd_names_make_names(name: str, stem: str, tmp_path: Path) -> None:
    (found,) = output_stems([name], tmp_path, ["srt"])
    write_whole(tmp_path / f"{found}.srt", "text")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [f"{found}.srt"]
    assert found == stem


def test_a_transcript_that_cannot_be_written_at_its_path_goes_to_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Outputs(["srt"], tmp_path / "out")
    (tmp_path / "out").mkdir()
    assert out.write("srt", "a", "one") is None
    # Another program makes a directory of that name while the transcription runs.
    (tmp_path / "out" / "b.srt").mkdir()
    told = out.write("srt", "b", "two")
    assert told
    beside = Path(told.rpartition(" is in ")[2])
    assert (beside.parent, beside.suffix, beside.read_text()) == (tmp_path / "out", ".srt", "two")
    assert f"{tmp_path / 'out' / 'b.srt'} could not be written" in told
    # Another program removes the directory.
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    told = out.write("srt", "c", "three")
    assert told
    assert Path(told.rpartition(" is in ")[2]).read_text() == "three"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError):
        out.write("srt", "d", "four")


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old"
    write_whole(path, "é\nnew")
    assert path.read_bytes() == "é\nnew".encode()
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["a.txt"]


# --- the progress line ---


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_drawn_over_itself_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    terminal, now = Terminal(), [0.0]
    with ProgressLine(terminal, clock=lambda: now[0]) as line:
        for second in range(0, 11):
            now[0] = float(second * 60)
            line.update("a-rather-long-name-of-a-recording-of-a-meeting.wav", second / 10, "asr")
    written = terminal.getvalue()
    assert "\n" not in written
    drawings = [part for part in written.split("\r") if part]
    assert all(len(drawing) < 60 for drawing in drawings)
    assert "asr" in drawings[0]
    assert "50%" in drawings[5]
    assert "5:00 left" in drawings[5]
    assert not drawings[-1].strip()


@pytest.mark.parametrize(("stream", "enabled"), [(io.StringIO(), True), (Terminal(), False)])
def test_no_progress_without_a_terminal_or_when_quiet(stream: io.StringIO, enabled: bool) -> None:
    with ProgressLine(stream, enabled=enabled) as line:
        line.update("a.wav", 0.5, "asr")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")])
def test_clock_time(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


# --- transcribe ---


@pytest.mark.models
def test_one_format_goes_to_standard_output(transcribe: Run, clip: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert transcribe(clip) == 0
    shown = capfd.readouterr()
    assert len(shown.out.split()) >= 5
    assert shown.out.endswith("\n")
    assert shown.err == ""
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.models
def test_a_document_is_written_as_bytes(
    transcribe: Run, clip: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert transcribe("-f", "docx", "-q", clip) == 0
    piped = capfdbinary.readouterr().out
    assert transcribe("-f", "docx,txt", "-o", tmp_path, "-q", clip) == 0
    files = {path.suffix: path.read_bytes() for path in tmp_path.glob(f"{clip.stem}.*")}
    assert files[".docx"] == piped
    read = docx.Document(io.BytesIO(piped))
    written = " ".join(paragraph.text for paragraph in read.paragraphs if paragraph.style.name == "Normal")
    assert written.split() == files[".txt"].decode().split()


@pytest.mark.models
def test_the_language_alone_is_one_line_for_each_file(
    transcribe: Run, base_model_dir: Path, clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert transcribe("--model", "base", "--task", "detect_language", "-q", clip, clip) == 0
    first, second = capfd.readouterr().out.splitlines()
    assert first == second
    assert re.fullmatch(r"en 0\.[5-9]\d|en 1\.00", first)


def test_the_configuration_chooses_the_format_and_a_flag_wins(
    transcribe: Run, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WHISPER_OUTPUT_FORMAT", "vtt")
    assert transcribe(clip) == 0
    assert capsys.readouterr().out.startswith("WEBVTT")
    assert transcribe(clip, "--format", "srt", "--max-line-width", "20", "--align") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1"
    cues = [line for line in lines if "-->" in line]
    text = [line for line in lines if line and line not in cues and not line.isdecimal()]
    assert len(text) > len(cues)


@pytest.mark.models
def test_files_that_fail_do_not_stop_the_others(
    transcribe: Run, clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.wav").write_text("not a sound in it")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "again").mkdir()
    shutil.copy(clip, tmp_path / "again" / "clip.wav")
    out = tmp_path / "new" / "out"
    missing, text, empty = tmp_path / "missing.wav", tmp_path / "notes.wav", tmp_path / "empty.wav"
    second = tmp_path / "again" / "clip.wav"
    assert transcribe(missing, text, clip, empty, second, "-f", "srt,json", "-f", "txt", "--output-dir", out) == 1
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{stem}.{name}" for stem in ("clip", "clip-2") for name in ("srt", "json", "txt")
    )
    assert json.loads((out / "clip.json").read_text())["segments"]
    assert (out / "clip.txt").read_text() == (out / "clip-2.txt").read_text() != ""
    shown = capfd.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert [line for line in lines if line.startswith(f"{missing}: FileNotFoundError: ")]
    assert [line for line in lines if line.startswith(f"{text}: InvalidAudio: ")]
    assert [line for line in lines if line.startswith(f"{empty}: InvalidAudio: ")]
    assert [line for line in lines if line.startswith(f"{second}: written as clip-2")]
    assert len(lines) == 4


@pytest.mark.models
def test_a_recording_without_room_on_the_disk_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    work = FileWork(Outputs(("txt",), None), ProgressLine(io.StringIO(), enabled=False), quiet=False)

    def fail(error: Exception) -> None:
        raise error

    with work.reported("long.wav") as outcome:
        fail(StorageFull("there is no room on the disk"))
    assert outcome.failed
    assert capsys.readouterr().err == "long.wav: StorageFull: there is no room on the disk\n"
    with pytest.raises(ModelUnavailable), work.reported("next.wav"):
        fail(ModelUnavailable("base is not here"))


def test_a_name_as_long_as_it_may_be_is_kept_and_a_longer_one_is_cut(
    transcribe: Run, clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(clip, f"{'会' * 82}.wav")
    shutil.copy(clip, f"{'é' * 126}.a")
    assert transcribe(*Path.cwd().iterdir(), "-f", "srt,json", "-o", "out") == 0
    found = {path.name for path in Path("out").iterdir()}
    assert found == {f"{stem}.{suffix}" for stem in ("会" * 82, "é" * 125) for suffix in ("srt", "json")}
    assert capfd.readouterr().err.count("written as") == 1


def test_a_name_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("out/a.srt").mkdir(parents=True)
    Path("a.wav").touch()
    assert main(["transcribe", "a.wav", "-f", "srt", "-o", "out"]) == 1
    assert capsys.readouterr().err == "a.wav: IsADirectoryError: out/a.srt is a directory\n"


@pytest.mark.models
def test_several_formats_go_to_files_here_and_replace_older_ones(
    transcribe: Run, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("clip.txt").write_text("older")
    assert transcribe(clip, "--format", "all") == 0
    written = {path.name.partition(".")[2] for path in Path.cwd().iterdir()}
    assert written == {format.extension for format in (*FORMATS.values(), *DOCUMENTS.values())}
    assert Path("clip.txt").read_text() != "older"
    assert capsys.readouterr().out == ""


@pytest.mark.models
def test_standard_input_and_the_module_are_the_same_program(
    clip: Path, models_dir: Path, tiny_en_model_dir: Path
) -> None:
    done = program("transcribe", "--models-dir", str(models_dir), *FAST, "-", input=clip.read_bytes())
    assert done.returncode == 0
    assert len(done.stdout.split()) >= 5
    assert done.stderr == b""


@pytest.mark.models
@pytest.mark.skipif(sys.platform == "win32", reason="there is no head")
def test_standard_input_is_not_read_beyond_the_longest_recording(
    models_dir: Path, tiny_en_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_AUDIO_SECONDS", "1")
    # Silence that would go on for hours.
    with subprocess.Popen(["head", "-c", "300M", "/dev/zero"], stdout=subprocess.PIPE) as endless:
        command = [*PROGRAM, "transcribe", "--models-dir", str(models_dir), *FAST, "-"]
        done = subprocess.run(command, stdin=endless.stdout, capture_output=True, timeout=120)
        endless.kill()
    assert done.returncode == 1
    assert b"AudioTooLong" in done.stderr
    assert b"give a stream that ends" in done.stderr


@pytest.mark.models
def test_an_error_that_holds_for_every_file_is_reported_once(
    transcribe: Run, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert transcribe(clip, clip, "--model", "tinny") == 2
    assert capsys.readouterr().err.count("tinny") == 1
    assert transcribe(clip, clip, "--vad-onset", "0.3", "--vad-offset", "0.6") == 2
    assert capsys.readouterr().err.count("vad_offset:") == 1
    assert transcribe(clip, clip, "--model", "large-v1") == 1
    assert capsys.readouterr().err.count("large-v1 is not") == 1
    assert transcribe(clip, "--device", "cuda:99") == 2
    assert "cuda:99" in capsys.readouterr().err


def test_no_model_is_needed_to_say_that_a_file_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "missing.wav"]) == 1
    assert capsys.readouterr().err == "missing.wav: FileNotFoundError: No such file or directory\n"


def test_an_output_directory_that_cannot_be_made_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken").touch()
    assert main(["transcribe", "x.wav", "--output-dir", "taken"]) == 2
    assert "taken" in capsys.readouterr().err


@pytest.mark.models
@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals and signals are different there")
def test_ctrl_c_ends_a_transcription_cleanly(
    clip: Path, models_dir: Path, tiny_en_model_dir: Path, tmp_path: Path
) -> None:
    import pty

    recording = tmp_path / "long.wav"
    repeat_wav(clip, recording, begin=0, seconds=5, times=48)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, "transcribe", "--models-dir", str(models_dir), *FAST, str(recording)],
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while b"asr" not in shown:
            shown += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        shown += read_all(ours)
    finally:
        process.kill()
        os.close(ours)
    assert process.returncode == 130
    assert b"long.wav [" in shown
    assert b"interrupted" in shown
    assert b"Traceback" not in shown
    assert out == b""


def read_all(descriptor: int) -> bytes:
    """Read the rest from a terminal whose other side was closed; Linux reports the end as an error."""
    found = b""
    try:
        while more := os.read(descriptor, 4096):
            found += more
    except OSError:
        return found
    return found


PROGRAM = (sys.executable, "-m", "whisper_api")


def program(*arguments: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*PROGRAM, *arguments], input=input, capture_output=True, timeout=120)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such pipes")
def test_a_reader_that_leaves_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*PROGRAM, "models", "list"], stdout=writer, stderr=subprocess.PIPE, timeout=120)
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == b""


# --- models ---


def models(*arguments: str | Path) -> int:
    return main(["models", *map(str, arguments)])


def records(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return {record["name"]: record for record in json.loads(capsys.readouterr().out)}


@pytest.fixture
def own_models(tiny_en_model_dir: Path, models_dir: Path, tmp_path: Path) -> Path:
    """A models directory with tiny.en in it that a test may change."""
    root = tmp_path / "models"
    shutil.copytree(tiny_en_model_dir, root / tiny_en_model_dir.relative_to(models_dir))
    return root


@pytest.mark.models
def test_the_list_of_models_says_which_are_on_this_machine(
    own_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models("list", "--json", "--models-dir", own_models) == 0
    found = records(capsys)
    assert {"tiny", "base", "large-v3", "large-v3-turbo", "ecapa", "align-fr"} <= set(found)
    assert found["tiny.en"]["installed"]
    assert Path(found["tiny.en"]["path"]).is_relative_to(own_models)
    assert found["tiny.en"]["bytes"] > 70e6
    assert not found["large-v1"]["installed"]
    assert models("list", "--installed", "--models-dir", own_models) == 0
    header, *rows = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert header.split() == ["name", "kind", "installed", "size", "licence", "source"]
    names = [row.split()[0] for row in rows]
    assert "tiny.en" in names
    assert "large-v1" not in names


@pytest.mark.models
def test_models_are_verified_and_removed(own_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = ("--models-dir", own_models)
    assert models("verify", "tiny.en", *here) == 0
    assert capsys.readouterr().out.startswith("tiny.en: ")
    assert models("pull", "tiny.en", *here) == 0
    assert "already here" in capsys.readouterr().out
    tokenizer = next(own_models.rglob("tokenizer.json"))
    content = bytearray(tokenizer.read_bytes())
    content[100] ^= 1
    tokenizer.write_bytes(content)
    assert models("verify", "tiny.en", *here) == 1
    assert "tokenizer.json" in capsys.readouterr().err
    assert models("remove", "tiny.en", *here) == 0
    assert not list(own_models.rglob("model.bin"))
    assert models("remove", "tiny.en", *here) == 1
    assert "tiny.en: ModelUnavailable: " in capsys.readouterr().err


@pytest.mark.parametrize("action", ["pull", "verify", "remove"])
def test_a_model_that_does_not_exist_is_wrong_usage(
    action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models(action, "bsae", "--models-dir", tmp_path / "none") == 2
    error = capsys.readouterr().err
    assert "bsae" in error
    assert "base" in error
    assert not (tmp_path / "none" / "whisper").exists()


def test_arguments_are_a_sequence_of_strings() -> None:
    arguments: Sequence[str] = ("--version",)
    assert main(arguments) == 0
