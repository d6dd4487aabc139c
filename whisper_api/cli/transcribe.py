"""``whisper-api transcribe``: transcribes audio files in sequence with the same loaded models."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from whisper_api.cli.flags import MACHINE_FLAGS, add_setting_flags, options_of, struct_of
from whisper_api.cli.outputs import STDIN, FileWork, Outputs, add_file_arguments, label_of, on_interrupt
from whisper_api.cli.progress import ProgressLine
from whisper_api.config import Config, Loaded
from whisper_api.errors import Canceled
from whisper_api.formats import DOCUMENTS, document, has_subtitles, option_warnings, rendered
from whisper_api.options import RenderOptions, TranscriptionOptions

if TYPE_CHECKING:
    from whisper_api.engine.engine import Engine
    from whisper_api.engine.models.download import DownloadProgress
    from whisper_api.schema import Progress, Transcript


def add_arguments(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the command's arguments.

    Args:
        parser: parser of the command.
        common: flags of every command; they are in the parser already.
    """
    add_file_arguments(parser)
    machine = parser.add_argument_group("where and how")
    add_setting_flags(machine, *MACHINE_FLAGS)
    machine.add_argument("--offline", action="store_true", help="use the models on this machine, download none")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Transcribe every file.

    Args:
        args: the parsed arguments.
        loaded: the configuration.

    Returns:
        0 on success, 1 when a file failed or a model is unavailable, 2 when the arguments or options are wrong.
    """
    config = loaded.config
    outputs = Outputs.of(args, config.output_format)
    line = ProgressLine(sys.stderr, enabled=not args.quiet)
    try:
        work = _Work(outputs, line, args.quiet, options_of(args), struct_of(args, RenderOptions))
        with line, _LazyEngine(config, offline=args.offline, line=line) as engine:
            failed = work.transcribe_all(args.files, engine)
    except Canceled:
        raise KeyboardInterrupt from None
    return 1 if failed else 0


@dataclass
class _Work(FileWork):
    """The work of the command."""

    options: TranscriptionOptions
    render_options: RenderOptions

    def transcribe_all(self, files: Sequence[str], engine: _LazyEngine) -> int:
        """Transcribe the files. The failure of a file is reported and does not stop the others.

        Returns:
            The number of files that failed.
        """
        failed = 0
        for file, stem in zip(files, self.outputs.stems(files), strict=True):
            with self.reported(file) as outcome:
                self.outputs.check(stem)
                transcript = self._transcribe(file, engine)
                contents, layout_warnings = self._rendered(transcript)
                outcome.failed = self.write(file, stem, contents)
                self.warn(file, *transcript.warnings, *layout_warnings)
            failed += outcome.failed
        return failed

    def _transcribe(self, file: str, engine: _LazyEngine) -> Transcript:
        source: Path | BinaryIO
        if file == STDIN:
            source = sys.stdin.buffer
        else:
            source = Path(file)
            # Fails for a mistyped name before any model is loaded.
            source.stat()

        def show(progress: Progress) -> None:
            self.line.update(label_of(file), progress.fraction, progress.stage)

        cancel = threading.Event()

        def stop() -> None:
            # The first Ctrl-C stops the engine after a work item, a second one at once.
            if cancel.is_set():
                raise KeyboardInterrupt
            cancel.set()

        running = engine.get()
        with on_interrupt(stop):
            return running.transcribe(source, self.options, on_progress=show, cancel=cancel)

    def _rendered(self, transcript: Transcript) -> tuple[dict[str, str | bytes], tuple[str, ...]]:
        """The transcript in each format, and the warnings about the layout of subtitles."""
        contents: dict[str, str | bytes] = {}
        warnings: dict[str, tuple[str, ...]] = {}
        for name in self.outputs.formats:
            if name in DOCUMENTS:
                contents[name], warnings[name] = document(transcript, name), option_warnings(self.render_options, name)
            else:
                contents[name], warnings[name] = rendered(transcript, name, self.render_options)
        # A format without subtitles needs no warning when another format has subtitles.
        laid_out = next((name for name in self.outputs.formats if has_subtitles(name)), self.outputs.formats[0])
        return contents, warnings[laid_out]


class _LazyEngine:
    """Creates the engine for the first file."""

    def __init__(self, config: Config, *, offline: bool, line: ProgressLine) -> None:
        self._config = config
        self._offline = offline
        self._line = line
        self._engine: Engine | None = None

    def get(self) -> Engine:
        if self._engine is None:
            from whisper_api.engine.engine import Engine

            self._engine = Engine.from_config(
                self._config, offline=True if self._offline else None, on_download=self._show
            )
        return self._engine

    def _show(self, progress: DownloadProgress) -> None:
        if progress.total:
            self._line.update(f"fetching {progress.name}", progress.done / progress.total, progress.file)

    def __enter__(self) -> _LazyEngine:
        return self

    def __exit__(self, *ignored: object) -> None:
        if self._engine is not None:
            self._engine.close()
