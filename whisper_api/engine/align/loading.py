"""Fetches and loads the alignment models of a job while its windows are decoded."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from whisper_api.engine.align.ahead import EmissionsAhead
from whisper_api.engine.align.align import alignment_source, has_model
from whisper_api.engine.align.models import AlignmentModel
from whisper_api.engine.context import JobContext, forget_frames
from whisper_api.engine.worker.background import BackgroundTask
from whisper_api.errors import ModelError, ModelUnavailable

log = logging.getLogger(__name__)

# How often the job's thread looks whether the models are loaded.
POLL_SECONDS = 0.2


class AlignmentModels:
    """The alignment models of a job's languages.

    The model of the first language is loaded in a thread of its own. The models of other languages are only fetched, so
    that a job with many languages does not fill the memory: they are loaded one after the other when they are used.

    Args:
        ctx: the job.
        languages: codes of the languages, the one with most speech first.
        leases: keeps the first model until the job ends.
        background: ends the threads.
        ahead: runs the first model while the windows are decoded, if all of them are in its language; None for no such
            run.

    Attributes:
        languages: the languages whose models can be had.
        ahead: as the argument; None with several languages.
    """

    def __init__(
        self,
        ctx: JobContext,
        languages: Sequence[str],
        leases: ExitStack,
        background: ExitStack,
        ahead: EmissionsAhead | None = None,
    ) -> None:
        self._ctx = ctx
        self.ahead = ahead if len(languages) == 1 else None
        # An alignment model needs text in the spoken language; a translation is English text over other speech.
        known = [code for code in languages if has_model(code)] if ctx.options.task != "translate" else []
        here = ctx.obtainable([_name(language) for language in known])
        for language in known:
            if _name(language) not in here:
                error = ModelUnavailable(f"{_name(language)} is not here, and cannot be downloaded now")
                warn_of_attention(ctx, language, error)
        for language in languages if known else ():
            if language not in known:
                ctx.warn(
                    f"the words in {language!r} have their times from Whisper's cross-attention, since there is no "
                    "alignment model for that language"
                )
        self.languages = [language for language in known if _name(language) in here]
        self._tasks: dict[str, BackgroundTask[Any]] = {}
        for language in self.languages:
            stop = threading.Event()
            part = ctx.subcontext(stop)
            task = self._task(part, language, leases if language == self.languages[0] else None)
            # Joined before the leases end: only one thread at a time may use the stack of leases.
            background.callback(task.join)
            background.callback(stop.set)
            self._tasks[language] = task

    def _task(self, ctx: JobContext, language: str, leases: ExitStack | None) -> BackgroundTask[Any]:
        if leases is None:
            return BackgroundTask("alignment", lambda: ctx.fetch_model(_name(language)))
        return BackgroundTask("alignment", lambda: self._load(ctx, language, leases))

    def _load(self, ctx: JobContext, language: str, leases: ExitStack) -> AlignmentModel:
        source = alignment_source(ctx, language)
        model = leases.enter_context(ctx.lease(source))
        if self.ahead is not None:
            self.ahead.begin(ctx, source, model)
        return model

    def failed(self) -> bool:
        """Whether a model already turned out not to be usable."""
        return any(task.failed() for task in self._tasks.values())

    def drop_failed(self) -> bool:
        """Wait for the models, and remove the languages of those that failed, with warnings.

        Returns:
            Whether a language was removed.
        """
        failed = []
        for language, task in self._tasks.items():
            while not task.wait(POLL_SECONDS):
                self._ctx.check()
            try:
                task.result()
            except Exception as error:
                warn_of_attention(self._ctx, language, error)
                failed.append(language)
        for language in failed:
            del self._tasks[language]
            self.languages.remove(language)
        return bool(failed)


def _name(language: str) -> str:
    return f"align-{language}"


def warn_of_attention(ctx: JobContext, language: str, error: Exception) -> None:
    """Warn that word times come from cross-attention, not from the alignment model.

    Args:
        ctx: the job.
        language: code of the language.
        error: why the alignment model is not used.

    Raises:
        Exception: ``error`` itself, if it is fatal.
    """
    if ctx.is_fatal(error) or not isinstance(error, ModelError):
        ctx.continue_without("word times come from Whisper's cross-attention", error)
        return
    log.info("no alignment model for %s: %s", language, error)
    # The error's text may name paths of this machine, and transcripts are given to other people: leave it out.
    ctx.warn(
        f"word times come from Whisper's cross-attention, since the alignment model align-{language} cannot be had "
        f"here; `whisper-api models pull align-{language}` fetches it or says why not"
    )
    forget_frames(error)
