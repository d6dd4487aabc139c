"""``whisper-api submit`` with a server that transcribes nothing."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rest_server import TEXT, Hold, Refuse, Rest, serving

from whisper_api.cli import outputs
from whisper_api.cli.main import main
from whisper_api.client import responses

ROOT = Path(__file__).parents[1]

Submit = Callable[..., int]


@pytest.fixture(autouse=True)
def _plain_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with two files and an environment in which nothing is configured."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    for name in [*os.environ]:
        if name.startswith(("WHISPER_", "RUST_LOG")):
            monkeypatch.delenv(name)
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(responses, "FIRST_PAUSE", 0.01)
    (work / "a.wav").write_bytes(b"first")
    (work / "b.wav").write_bytes(b"second")


@pytest.fixture
def rest() -> Iterator[Rest]:
    with serving(Rest()) as rest:
        yield rest


@pytest.fixture
def submit(rest: Rest) -> Submit:
    def run(*arguments: str) -> int:
        return main(["submit", "--url", rest.url, *arguments])

    return run


@pytest.fixture
def started(rest: Rest) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command in another process."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-X", "faulthandler", "-m", "whisper_api", "submit", "--url", rest.url, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            # The process should have ended: the failed test shows where it hangs.
            process.send_signal(signal.SIGABRT)
        print(*process.communicate())


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_vocabulary_is_a_file_of_terms_or_a_name(
    submit: Submit, rest: Rest, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("names.txt").write_text("\ufeffZoë Ångström\n\n  Bo \n", encoding="utf-8")
    for given in ("names.txt", "clients"):
        assert submit("a.wav", "--vocabulary", given) == 0
    sent = [request.fields.get("vocabulary") for request in rest.of("POST")]
    assert sent == ['["Zoë Ångström","Bo"]', "clients"]
    Path("names.txt").write_bytes(b"\xff")
    assert submit("a.wav", "--vocabulary", "names.txt") == 2
    assert "names.txt cannot be read" in capsys.readouterr().err


def test_a_file_goes_there_and_its_text_comes_back(
    submit: Submit, rest: Rest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit("a.wav", "--language", "en", "--no-align", "--format", "txt") == 0
    captured = capsys.readouterr()
    assert captured.out == f"{TEXT}\n"
    assert "a.wav: warning: job" in captured.err
    (post,) = rest.of("POST")
    assert (post.file, post.file_name) == (b"first", "a.wav")
    asked = {"sync": "false", "language": "en", "align": "false", "output_format": "txt"}
    # The result is removed after it was written to the file, not when it was sent.
    assert post.fields == {**asked, "keep_result": "true"}
    assert rest.canceled == [(next(iter(rest.jobs)), {})]


def test_the_format_is_that_of_the_configuration_unless_it_is_given(
    submit: Submit, rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHISPER_OUTPUT_FORMAT", "vtt")
    assert submit("a.wav", "--quiet") == 0
    assert rest.of("POST")[0].fields["output_format"] == "vtt"


def test_several_formats_are_files_and_the_result_that_was_kept_for_them_is_removed(
    submit: Submit, rest: Rest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit("a.wav", "b.wav", "-f", "txt,srt", "--output-dir", "out", "-q") == 0
    first, second = rest.jobs
    found = {path.name: path.read_text() for path in Path("out").iterdir()}
    assert found == {"a.txt": TEXT, "a.srt": f"srt of {first}", "b.txt": TEXT, "b.srt": f"srt of {second}"}
    assert [post.fields["keep_result"] for post in rest.of("POST")] == ["true", "true"]
    assert [job_id for job_id, _ in rest.canceled] == [first, second]
    assert capsys.readouterr() == ("", "")
    assert submit("a.wav", "-f", "txt,srt", "--keep-result", "-q") == 0
    assert len(rest.canceled) == 2


def test_a_document_is_a_file_beside_the_text(submit: Submit, rest: Rest) -> None:
    assert submit("a.wav", "-f", "docx,txt", "--output-dir", "out", "-q") == 0
    (job_id,) = rest.jobs
    assert rest.of("POST")[0].fields["output_format"] == "txt"
    found = {path.name: path.read_text() for path in Path("out").iterdir()}
    assert found == {"a.docx": f"docx of {job_id}", "a.txt": TEXT}
    assert submit("b.wav", "-f", "docx", "--output-dir", "out", "-q") == 0
    assert "output_format" not in rest.of("POST")[1].fields
    assert Path("out/b.docx").exists()


def test_the_layout_of_subtitles_is_sent(submit: Submit, rest: Rest) -> None:
    flags = ("--max-line-width", "42", "--highlight-words", "--subtitle-preset", "bbc", "--min-gap", "0.25")
    assert submit("a.wav", "-f", "srt", *flags, "-q") == 0
    (post,) = rest.of("POST")
    assert (post.fields["max_line_width"], post.fields["highlight_words"]) == ("42", "true")
    assert (post.fields["subtitle_preset"], post.fields["min_gap"]) == ("bbc", "0.25")
    assert "max_line_count" not in post.fields


def test_a_file_name_of_the_largest_length_is_accepted(
    submit: Submit, rest: Rest, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["会" * 82 + ".wav", "é" * 125 + ".wav"]
    for name in names:
        Path(name).write_bytes(b"long")
    assert submit(*names, "-f", "srt,json", "-o", "out", "-q") == 0
    assert {path.name for path in Path("out").iterdir()} == {
        f"{stem}.{suffix}" for stem in ("会" * 82, "é" * 125) for suffix in ("srt", "json")
    }
    assert capsys.readouterr().err == ""


def test_a_result_that_cannot_be_written_is_kept(
    submit: Submit, rest: Rest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs, "write_whole", full)
    assert submit("a.wav", "-f", "srt", "-o", "out") == 1
    told = capsys.readouterr().err
    assert f"the server keeps the result of job {next(iter(rest.jobs))}" in told
    assert "No space left on device" in told
    assert rest.canceled == []
    assert rest.of("POST")[0].fields["keep_result"] == "true"


def test_a_name_that_cannot_be_written_is_refused_before_the_upload(
    submit: Submit, rest: Rest, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out/a.srt").mkdir(parents=True)
    assert submit("a.wav", "b.wav", "-f", "srt", "-o", "out", "-q") == 1
    assert "a.wav: IsADirectoryError: out/a.srt is a directory" in capsys.readouterr().err
    assert [post.file_name for post in rest.of("POST")] == ["b.wav"]


def test_standard_input_is_a_file_too(submit: Submit, rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"piped")))
    assert submit("-", "-q") == 0
    assert rest.of("POST")[0].file == b"piped"


def test_detached_jobs_are_printed_by_id(submit: Submit, rest: Rest, capsys: pytest.CaptureFixture[str]) -> None:
    rest.script = [{"status": "Processing"}]
    assert submit("a.wav", "b.wav", "--detach") == 0
    assert capsys.readouterr().out.split() == [*rest.jobs]
    assert not rest.of("GET")


def test_the_key_comes_from_the_environment_or_a_file_and_there_is_no_flag_for_it(
    submit: Submit, rest: Rest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WHISPER_API_KEY", "wk_of_the_environment")
    assert submit("a.wav", "-q") == 0
    Path("key.txt").write_text("wk_of_the_file\n")
    assert submit("a.wav", "-q", "--key-file", "key.txt") == 0
    sent = [post.headers["authorization"] for post in rest.of("POST")]
    assert sent == ["Bearer wk_of_the_environment", "Bearer wk_of_the_file"]
    assert submit("a.wav", "--key-file", "none.txt") == 2
    assert "none.txt" in capsys.readouterr().err
    assert main(["submit", "--help"]) == 0
    flags = re.findall(r"--[a-z-]+", capsys.readouterr().out)
    assert [flag for flag in flags if "key" in flag or "token" in flag] == ["--key-file"] * flags.count("--key-file")


@pytest.mark.parametrize(
    ("refusal", "code", "says"),
    [
        (Refuse(400, "invalid_field", "language: expected a code"), 2, "language: expected a code"),
        (Refuse(422, "unknown_model", "no model huge"), 2, "no model huge"),
        (Refuse(422, "model_unavailable", "no model of speakers"), 1, "no model of speakers"),
        (Refuse(401, "unauthorized", "A key is needed"), 1, "A key is needed"),
        (Refuse(404, "not_found", "There is nothing"), 1, "There is nothing"),
        (Refuse(503, "queue_full", "Too many wait", retry_after="3600"), 1, "Too many wait"),
        (Refuse(503, "storage_full", "No space", retry_after="3600"), 1, "No space"),
    ],
    ids=lambda value: value.code if isinstance(value, Refuse) else "",
)
def test_an_error_that_holds_for_all_files_ends_the_command(
    refusal: Refuse, code: int, says: str, submit: Submit, rest: Rest, capsys: pytest.CaptureFixture[str]
) -> None:
    rest.faults["POST"] = [refusal]
    assert submit("a.wav", "b.wav") == code
    assert says in capsys.readouterr().err
    assert len(rest.of("POST")) == 1


def test_jobs_that_were_sent_before_the_command_ends_are_canceled(submit: Submit, rest: Rest) -> None:
    def refuse_the_second(seen: threading.Event) -> None:
        wait_until(lambda: rest.jobs)
        rest.faults["POST"] = [Refuse(401, "unauthorized", "The key was revoked")]
        seen.set()

    held = threading.Event()
    rest.faults["POST"] = [Hold(held)]
    threading.Thread(target=refuse_the_second, args=(held,)).start()
    assert submit("a.wav", "b.wav", "-q") == 1
    assert rest.canceled == [(next(iter(rest.jobs)), {"force": "true"})]


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        (Refuse(415, "invalid_audio", "not audio: text"), "InvalidAudio: not audio: text"),
        (Refuse(413, "file_too_large", "File too large"), "RequestError: File too large"),
    ],
    ids=["415", "413"],
)
def test_an_error_of_one_file_does_not_stop_the_others(
    refusal: Refuse, says: str, submit: Submit, rest: Rest, capsys: pytest.CaptureFixture[str]
) -> None:
    rest.faults["POST"] = [refusal]
    assert submit("a.wav", "none.wav", "b.wav") == 1
    captured = capsys.readouterr()
    assert captured.out == f"{TEXT}\n"
    assert f"a.wav: {says}" in captured.err
    assert "none.wav: FileNotFoundError: No such file or directory" in captured.err


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ({"status": "Failed", "error": "nothing in it"}, "a.wav: JobFailed: nothing in it"),
        ({"status": "Canceled"}, "a.wav: JobCanceled: the job was canceled"),
        ({"status": "Canceled", "error": "its key was revoked"}, "a.wav: JobCanceled: its key was revoked"),
    ],
    ids=["failed", "canceled", "canceled by the server"],
)
def test_a_job_without_a_result_is_an_error(
    status: dict[str, str], says: str, submit: Submit, rest: Rest, capsys: pytest.CaptureFixture[str]
) -> None:
    rest.script = [status]
    assert submit("a.wav") == 1
    assert says in capsys.readouterr().err


def test_many_files_are_not_all_sent_before_the_first_is_fetched(submit: Submit, rest: Rest) -> None:
    assert submit(*["a.wav"] * 10, "-o", "out", "-q") == 0
    assert len([*Path("out").iterdir()]) == 10
    ahead, most = 0, 0
    for request in rest.seen:
        ahead += 1 if request.method == "POST" else -1 if request.path.endswith("/result") else 0
        most = max(most, ahead)
    assert most == 4


def test_an_unreachable_server_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Rest()) as rest:
        pass
    assert main(["submit", "a.wav", "--url", rest.url]) == 1
    assert f"{rest.url} cannot be reached" in capsys.readouterr().err
    assert main(["submit", "a.wav", "--url", "nowhere"]) == 2
    assert "http://HOST:PORT" in capsys.readouterr().err


def test_an_interrupt_cancels_the_submitted_jobs(rest: Rest, started: Callable[..., subprocess.Popen[str]]) -> None:
    rest.script = [{"status": "Processing", "progress": 0.3, "stage": "asr"}]
    process = started("a.wav", "b.wav")
    wait_until(lambda: len(rest.of("GET")) >= 2)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert sorted(rest.canceled) == sorted((job_id, {"force": "true"}) for job_id in rest.jobs)
    assert len(rest.jobs) == 2
    assert "Traceback" not in told


def test_an_interrupt_between_an_upload_and_its_answer_cancels_that_job_too(
    rest: Rest, started: Callable[..., subprocess.Popen[str]]
) -> None:
    rest.script = [{"status": "Processing"}]
    held = threading.Event()
    rest.faults["POST"] = [Hold(held)]
    process = started("a.wav")
    wait_until(lambda: rest.jobs)
    process.send_signal(signal.SIGINT)
    # The handler only notes the signal, since the process still runs when the response is sent.
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    held.set()
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert rest.canceled == [(next(iter(rest.jobs)), {"force": "true"})]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
def test_progress_is_drawn_on_a_terminal(rest: Rest) -> None:
    import pty

    rest.script = [
        {"status": "Queued", "queue_position": 3},
        {"status": "Processing", "progress": 0.5, "stage": "align"},
        {"status": "Completed"},
    ]
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "whisper_api", "submit", "--url", rest.url, "a.wav"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    drawn = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:
            # Linux raises this error when the other end is closed.
            break
        if not piece:
            break
        drawn += piece
    os.close(ours)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert text == f"{TEXT}\n"
    for shown in (b"sending a.wav", b"position 3 in the queue", b"50%  align"):
        assert shown in drawn
