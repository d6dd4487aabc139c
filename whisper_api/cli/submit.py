"""``whisper-api submit``: sends audio files to a server and writes the transcripts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_api import errors
from whisper_api.cli.flags import options_of, struct_of
from whisper_api.cli.outputs import STDIN, FileWork, Outputs, add_file_arguments, label_of, on_interrupt, one_line
from whisper_api.cli.progress import ProgressLine
from whisper_api.cli.server_arguments import add_server_arguments, api_key
from whisper_api.client import Client
from whisper_api.config import Loaded
from whisper_api.formats import DOCUMENTS
from whisper_api.options import RenderOptions, TranscriptionOptions

if TYPE_CHECKING:
    from whisper_api.job_values import JobStatus


# Number of unfinished jobs at the server: enough that the server never waits for an upload.
FILES_AHEAD = 4
# Seconds that the cancelation of a job may take after Ctrl-C.
CANCEL_SECONDS = 10


def add_arguments(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the command's arguments.

    Args:
        parser: parser of the command.
        common: flags of every command; they are in the parser already.
    """
    server = parser.add_argument_group("server")
    add_server_arguments(server)
    server.add_argument("--detach", action="store_true", help="print the jobs' ids instead of waiting for them")
    server.add_argument("--keep-result", action="store_true", help="leave the result there until the job expires")
    server.add_argument("--webhook-url", metavar="ADDRESS", help="URL that gets the event of each job's end")
    server.add_argument("--webhook-include-result", action="store_true", help="let that event carry the result")
    add_file_arguments(parser)


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Send every file, and write the transcripts.

    Args:
        args: the parsed arguments.
        loaded: the configuration.

    Returns:
        0 on success, 1 when a file failed or the server cannot be used, 2 when the arguments or options are wrong.
    """
    key = api_key(args.key_file)
    outputs = Outputs.of(args, loaded.config.output_format)
    line = ProgressLine(sys.stderr, enabled=not args.quiet)
    with line, Client(args.url, key) as client:
        work = _Work(outputs, line, args.quiet, client, args, options_of(args))
        try:
            failed = work.send_all(args.files) if args.detach else work.transcribe_all(args.files)
        except BaseException:
            with Client(args.url, key, timeout=CANCEL_SECONDS, retries=0) as hurried:
                work.cancel_all(hurried)
            raise
    return 1 if failed else 0


@dataclass(frozen=True)
class _Sent:
    """A file whose job is on the server."""

    file: str
    stem: str
    job_id: str


@dataclass
class _Work(FileWork):
    """The work of the command. ``sent`` has the files whose jobs are not finished; an interruption cancels them."""

    concerning_all = (*FileWork.concerning_all, errors.Busy, errors.StorageError)

    client: Client
    args: argparse.Namespace
    options: TranscriptionOptions
    sent: list[_Sent] = field(default_factory=list)

    def send_all(self, files: Sequence[str]) -> int:
        """Send the files and print the jobs' ids.

        Returns:
            The number of files that failed.
        """
        failed = 0
        for file in files:
            with self.reported(file) as outcome:
                job_id = self._send(file)
                self.line.clear()
                print(job_id, flush=True)
            failed += outcome.failed
        return failed

    def transcribe_all(self, files: Sequence[str]) -> int:
        """Send the files and write their transcripts. Up to ``FILES_AHEAD`` files are sent before the first has ended.

        The failure of a file is reported and does not stop the others.

        Returns:
            The number of files that failed.
        """
        failed = 0
        for file, stem in zip(files, self.outputs.stems(files), strict=True):
            if len(self.sent) == FILES_AHEAD:
                failed += self._finish(self.sent[0])
            with self.reported(file) as outcome:
                self.outputs.check(stem)
                self.sent.append(_Sent(file, stem, self._send(file)))
            failed += outcome.failed
        while self.sent:
            failed += self._finish(self.sent[0])
        return failed

    def cancel_all(self, client: Client) -> None:
        """Cancel the unfinished jobs, and report jobs that could not be canceled."""
        for sent in self.sent:
            self._cancel(client, sent)

    def _cancel(self, client: Client, sent: _Sent) -> None:
        try:
            client.cancel(sent.job_id, force=True)
        except errors.WhisperApiError as error:
            self.say(sent.file, f"job {sent.job_id} could not be canceled and may go on: {one_line(error)}")

    def _send(self, file: str) -> str:
        complete = came = False

        def note() -> None:
            # The first Ctrl-C waits for the response to a complete upload, which has the job to cancel.
            nonlocal came
            if came or not complete:
                raise KeyboardInterrupt
            came = True

        def show(sent: int, total: int) -> None:
            nonlocal complete
            complete = sent == total
            self.line.update(f"sending {label_of(file)}", sent / total if total else 1.0)

        with on_interrupt(note):
            job_id = self.client.submit(
                sys.stdin.buffer if file == STDIN else Path(file),
                self.options,
                output_format=self._job_format(),
                render_options=struct_of(self.args, RenderOptions),
                # The server must keep the result until all formats are fetched and written.
                keep_result=self.args.keep_result or not self.args.detach or len(self.outputs.formats) > 1,
                webhook_url=self.args.webhook_url,
                webhook_include_result=self.args.webhook_include_result,
                on_upload=show,
            )
            if came:
                self.sent.append(_Sent(file, "", job_id))
                raise KeyboardInterrupt
        return job_id

    def _job_format(self) -> str | None:
        """The format of the job's text; None for the server's default, when only documents are wanted."""
        return next((name for name in self.outputs.formats if name not in DOCUMENTS), None)

    def _finish(self, sent: _Sent) -> bool:
        """Wait for a job, write its transcript, and return whether that failed."""
        label = label_of(sent.file)

        def show(status: JobStatus) -> None:
            if status.status == "Queued":
                position = f"position {status.queue_position or 1} in the queue"
                self.line.update(f"waiting: {label}", 0.0, "for a model" if status.stage == "download" else position)
            else:
                self.line.update(label, status.progress or 0.0, status.stage or "")

        with self.reported(sent.file) as outcome:
            status = self.client.wait(sent.job_id, on_progress=None if self.quiet else show)
            if status.status == "Failed":
                raise errors.JobFailed(sent.job_id, status.error or "the job failed")
            if status.status == "Canceled":
                raise errors.JobCanceled(sent.job_id, status.error or "the job was canceled")
            outcome.failed = self._write(sent)
        self.sent.remove(sent)
        return outcome.failed

    def _write(self, sent: _Sent) -> bool:
        """Fetch a result, write it in all formats, and return whether a file has another path than planned."""
        result = self.client.result(sent.job_id)
        first = self._job_format()
        contents = {
            name: result.text if name == first else self.client.result_file(sent.job_id, name)
            for name in self.outputs.formats
        }
        try:
            moved = self.write(sent.file, sent.stem, contents)
        except BrokenPipeError:
            raise
        except OSError:
            self.say(sent.file, f"the server keeps the result of job {sent.job_id} until the job expires")
            raise
        if not self.args.keep_result:
            try:
                self.client.cancel(sent.job_id)
            except errors.WhisperApiError as error:
                self.say(sent.file, f"the server keeps the result of job {sent.job_id}: {one_line(error)}")
        self.warn(sent.file, *result.warnings)
        return moved
