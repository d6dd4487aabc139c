"""Every number in what users read is held by the code: the table below says by which constant, setting or test.

The texts are the README, the documents, the docstrings of the public names, the help of the command line and that of
the settings (which ``whisper_api.conf`` repeats). A number that has no row here fails ``test_every_number_is_held``:
add a row, or take the number out of the text.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import functools
import importlib.metadata
import inspect
import io
import operator
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import pytest
from documents import DOCUMENTS, ROOT, between, prose
from server.inside import AUDIO, inside, on_a_loop

import whisper_api
from whisper_api import Config
from whisper_api.cli.main import COMMANDS, main
from whisper_api.config import settings
from whisper_api.engine.audio.device_copies import COPY_BYTES
from whisper_api.engine.diarize.open_models import CAMPPLUS
from whisper_api.engine.whisper.settings import SIZES
from whisper_api.jobs.webhook_sender import DELAYS
from whisper_api.key_values import DEFAULT_GRACE_SECONDS, MAX_GRACE_SECONDS
from whisper_api.testing import FakeExecutor

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# --- what the code says ---

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Mult: operator.mul,
    ast.LShift: operator.lshift,
    ast.Pow: operator.pow,
    ast.Div: operator.truediv,
    ast.Sub: operator.sub,
    ast.Add: operator.add,
}


def _number(node: ast.expr) -> float | None:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _number(operand)
            return None if inner is None else -inner
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            values = _number(left), _number(right)
            return None if None in values else float(_OPERATORS[type(op)](*values))
    return None


@functools.cache
def _constants(folder: str) -> Mapping[str, tuple[float, ...]]:
    """Name to the values that the modules of a folder, and of the folders in it, give to constants of that name."""
    found: dict[str, list[float]] = {}
    for path in sorted((ROOT / "whisper_api" / folder).rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
                continue
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = [*zip(target.elts, node.value.elts, strict=True)]
            for name, value in pairs:
                number = _number(value)
                if isinstance(name, ast.Name) and number is not None:
                    found.setdefault(name.id, []).append(number)
    return {name: tuple(numbers) for name, numbers in found.items()}


def constant(folder: str, name: str) -> float:
    """The value of a constant, wherever in a folder of the package it stands: modules may move."""
    values = set(_constants(folder).get(name, ()))
    assert len(values) == 1, f"{name} has {len(values)} values in whisper_api/{folder}"
    return values.pop()


def in_script(name: str, words: str) -> str:
    """What a group of an expression matches in a script."""
    (found,) = re.findall(words, (ROOT / "scripts" / name).read_text(encoding="utf-8"), re.MULTILINE)
    return str(found)


@functools.cache
def names_of_tests() -> frozenset[str]:
    """The names of all tests."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    return frozenset(name for text in texts for name in re.findall(r"def (test_\w+)\(", text))


# --- what users read ---


def _docstrings() -> Iterator[tuple[str, str]]:
    for name in whisper_api.__all__:
        value = getattr(whisper_api, name)
        if isinstance(value, str):
            continue
        yield name, inspect.getdoc(value) or ""
        # With inherited members: the methods of the clients come from several classes.
        for member in dir(value) if inspect.isclass(value) else ():
            function = getattr(value, member)
            if not member.startswith("_") and isinstance(function, (FunctionType, MethodType, property)):
                yield f"{name}.{member}", inspect.getdoc(function) or ""


def _help() -> str:
    """The help of every command; of the settings and options too, which it repeats."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        for command in ([], *([name] for name in COMMANDS)):
            assert main([*command, "--help"]) == 0
    return re.sub(r"\s+", " ", told.getvalue())


@functools.cache
def texts() -> Mapping[str, str]:
    """The place of each text, and the text without code and without the parts that other tests check."""
    found = {"help": _help()}
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        # Held by test_config.py, test_docs.py and test_batch_memory.py.
        for part in ("configuration", "errors", "comparison", "presets", "batches"):
            if f"<!-- {part} -->" in text:
                text = text.replace(between(text, part), "")
        found[path.relative_to(ROOT).as_posix()] = re.sub(r"`[^`]*`|\]\([^)]*\)", "``", prose(text))
    # Measurements, which are not promises; test_docs.py demands their date and script.
    del found["docs/accuracy-and-speed.md"]
    found |= {f"setting {setting.key}": setting.help for setting in settings()}
    found |= {f"docstring {name}": text for name, text in _docstrings()}
    return found


# Numbers that are parts of names or of the order of things.
NAMES = re.compile(
    r"""
    int8,\ beam\ 5 | Measured\ on\ \d+\ \w+\ \d{4}\ on\ two\ cores | Two\ commands | Three\ examples | ten\ lines
    | \b(the|between)\ two\b
    | \b(HTTP/1\.1|HTTP/2|OpenAPI\ 3\.1|RFC\ \d+|CC\ BY(-NC)?\ 4\.0|Apache-2\.0|SHA-256|UTF-8)\b
    | \b(wav2vec\ 2\.0|IPv6|base64)\b
    | \b(int8|int16|float16|float32|bfloat16|large-v3|CTranslate2|mp3|m4a|F2|x86-64|Zen\ 4|community-1)\b
    | \b(int8_\w+|whisper-1|gpt-4o-transcribe|SPEAKER_00|127\.0\.0\.1:8181)\b
    | ^\d\.\ | ^\d\ \w+,\ 1,\ 2\ \.\.\. | (?<!\d)0,\ 1,\ 2\ \.\.\.
    """,
    re.VERBOSE | re.MULTILINE,
)
WORDS = {
    word: float(value)
    for value, word in enumerate(("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), 2)
}
NUMBER = re.compile(rf"(?<![\w.])-?\d[\d.]*(?<!\.)|\b(?:half|third|quarter|{'|'.join(WORDS)}|twelve|hundred)\b", re.I)


# --- the table ---


@dataclass(frozen=True)
class Promise:
    """A promise with a number.

    Attributes:
        where: regular expression for the names of the texts that make the promise.
        words: regular expression for the promise; each group is a number.
        values: what the code says, a value for each group.
        tests: names of the tests that show the behaviour.
    """

    where: str
    words: str
    values: Callable[[], tuple[float, ...]] = tuple
    tests: tuple[str, ...] = ()


def _default(key: str) -> float:
    (default,) = (setting.default for setting in settings() if setting.key == key)
    assert isinstance(default, (int, float))
    return default


def _python_versions() -> tuple[float, ...]:
    """The minor versions of Python 3 that the package says it is for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    minors = [float(m) for c in project["classifiers"] for m in re.findall(r"Python :: 3\.(\d+)$", c)]
    assert project["requires-python"] == f">=3.{min(minors):g},<3.{max(minors) + 1:g}"
    return tuple(sorted(minors))


def _numbers_of_test(file: str, names: str) -> tuple[float, ...]:
    """Percentages that a test demands, from its line ``A, B = 0.5, 0.6``."""
    (values,) = re.findall(rf"^{names} = (.*)$", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE)
    return tuple(100 * float(value) for value in values.split(","))


CLIENT = r"docstring (Client|AsyncClient)"
SENTINELS = "test_a_limit_of_zero_is_no_limit"
PROMISES = (
    # Installation
    Promise(r"README|docs/installation", r"Python 3\.(\d+), 3\.(\d+), 3\.(\d+) or 3\.(\d+)", _python_versions),
    Promise(r"docs/installation", r"up to 9 GB on the disk", tests=("test_an_installation_fits_the_disk_as_promised",)),
    Promise(
        r"docs/operations|help",
        r"exit code (\d+)",
        lambda: (constant("cli", "EXIT_DEVICE_LOST"),),
        tests=("test_a_gpu_that_fails_ends_the_process_with_a_code_of_its_own_and_its_job_runs_in_the_next",),
    ),
    Promise(r"docs/development", r"in 3 processes", tests=("test_the_script_runs_the_tests_in_three_processes",)),
    # Statuses of HTTP
    Promise(r"docs/", r"\b[245]\d\d\b(?! bytes)", tests=("test_every_status_in_the_documents_is_one_of_the_api",)),
    Promise(
        CLIENT,
        r"429, 502, 503 or 504",
        tests=("test_a_second_attempt_has_the_same_key_and_the_whole_body_and_makes_no_second_job",),
    ),
    Promise(CLIENT, r"413: too large", tests=("test_a_client_that_sends_all_of_a_too_large_file_gets_413",)),
    # The API
    Promise(
        r"docs/api",
        r"takes up to (\d+) ``",
        lambda: (constant("server/uploads", "MAX_FILES"),),
        ("test_a_request_may_name_as_many_urls_as_files",),
    ),
    Promise(
        r"docs/api|docstring (Client|AsyncClient)\.status",
        r"(?:at most|up to) (\d+)[),]",
        lambda: (60,),
        ("test_a_wait_is_bounded_as_promised",),
    ),
    Promise(
        r"docs/api",
        r"up to (\d+) voices",
        lambda: (constant("server/uploads", "MAX_KNOWN_SPEAKERS"),),
        ("test_invalid_known_speakers_are_refused_and_leave_no_files",),
    ),
    Promise(
        rf"docs/speakers|{CLIENT}\.enroll|help",
        r"recordings of (\d+) to (\d+) seconds",
        lambda: (constant("server/uploads", "MIN_SECONDS"), constant("server/uploads", "MAX_SECONDS")),
        ("test_what_cannot_be_used_is_named",),
    ),
    Promise(
        r"docs/speakers",
        r"Up to (\d+) recordings",
        lambda: (constant("jobs", "MAX_SAMPLES"),),
        ("test_what_cannot_be_used_is_named", "test_recordings_are_added_and_one_that_differs_is_named"),
    ),
    Promise(
        r"docs/speakers",
        r"a similarity of (\d\.\d+) on",
        lambda: (CAMPPLUS.same_person,),
        ("test_an_enrolled_voice_names_its_speaker_with_a_score",),
    ),
    Promise(
        r"docs/speakers",
        r"a speaker is named from (\d\.\d+) on",
        lambda: (CAMPPLUS.same_person_telephone or 0.0,),
        ("test_a_voice_is_compared_in_the_band_of_a_telephone",),
    ),
    Promise(
        r"docs/speakers",
        r"two\s+voices are compared|one\s+of them was|Two\s+voices have",
        tests=("test_a_recording_over_a_telephone_and_another_are_compared_in_its_band",),
    ),
    Promise(
        r"docs/speakers",
        r"within 1 minute|a person into two speakers|of the two\s+voices|and two\s+times|article 9",
        tests=(
            "test_a_deleted_or_changed_speaker_is_gone_from_the_disk",
            "test_a_name_goes_to_one_speaker_only",
        ),
    ),
    Promise(
        r"docstring VoiceEmbedding\.",
        r"with length 1|from -1 to 1|of two voices",
        tests=("test_the_mean_has_length_one_and_leans_to_the_longer_recordings",),
    ),
    Promise(
        r"docs/operations",
        r"(\d+) hours by default, (\d+) days at most",
        lambda: (DEFAULT_GRACE_SECONDS / 3600, MAX_GRACE_SECONDS / 86400),
        ("test_a_rotation_prints_the_new_key_and_lists_how_long_the_old_one_lives", "test_a_grace_has_bounds"),
    ),
    Promise(
        r"docs/operations",
        r"a grace of (\d+) seconds",
        lambda: (constant("access", "LEAST_ADMIN_GRACE_SECONDS"),),
        ("test_the_last_administrators_key_is_not_rotated_without_grace",),
    ),
    Promise(
        r"docs/api",
        r"has up to (\d+) vocabularies of up to (\d+) terms of up to (\d+) characters",
        lambda: tuple(constant("jobs", f"MAX_{name}") for name in ("VOCABULARIES", "TERMS", "TERM_CHARACTERS")),
        ("test_limits_are_named",),
    ),
    Promise(
        r"docs/api",
        r"at most (\d+) of them",
        lambda: (constant("engine/whisper", "TERMS_OF_A_WINDOW"),),
        ("test_the_most_similar_terms_come_first_and_those_of_the_text_not_at_all",),
    ),
    Promise(
        rf"{CLIENT}\.rotate_key",
        r"up to (\d+) days",
        lambda: (MAX_GRACE_SECONDS / 86400,),
        ("test_a_grace_has_bounds",),
    ),
    Promise(
        rf"{CLIENT}\.put_vocabulary",
        r"1 to (\d+) letters",
        lambda: (64,),
        ("test_limits_are_named",),
    ),
    Promise(
        r"docs/api",
        r"with (\d+) to (\d+) seconds of sound",
        lambda: (constant("server/uploads", "MIN_SECONDS"), constant("server/uploads", "MAX_SECONDS")),
        ("test_invalid_known_speakers_are_refused_and_leave_no_files",),
    ),
    Promise(
        rf"docs/api|{CLIENT}\.submit",
        r"up to (\d+) bytes",
        lambda: (constant("store", "MAX_BYTES"),),
        ("test_its_size_is_that_of_its_bytes",),
    ),
    Promise(
        r"docs/api",
        r"after the same (\d+) seconds",
        lambda: (constant("outbound", "LOOKUP_SECONDS"),),
        ("test_a_forbidden_host_has_the_same_error_as_an_unknown_host",),
    ),
    Promise(
        r"docs/api",
        r"fetches (\d+) files at a time",
        lambda: (constant("server", "FETCHES_PER_CALLER"),),
        ("test_slow_origins_of_a_caller_leave_room_for_others",),
    ),
    Promise(
        r"docs/api",
        r"after (\d+) seconds \((\d+) seconds after a restart",
        lambda: (constant("server/realtime", "GRACE_SECONDS"), constant("server/realtime", "RESTART_GRACE_SECONDS")),
        (
            "test_a_client_that_goes_away_cancels_its_job",
            "test_after_a_restart_a_job_whose_client_does_not_come_is_canceled",
        ),
    ),
    Promise(
        r"docs/api",
        r"(\d+)-bit\s+little-endian, mono, (\d+) kHz",
        lambda: (8 * constant("server/uploads", "SAMPLE_BYTES"), constant("", "SAMPLE_RATE") / 1000),
        ("test_headerless_samples_become_subtitles",),
    ),
    # Webhooks
    Promise(
        r"docs/webhooks",
        r"up to (\d+) endpoints",
        lambda: (constant("jobs", "MAX_ENDPOINTS"),),
        ("test_limits_of_endpoints_are_named",),
    ),
    Promise(
        r"docs/webhooks",
        r"larger than (\d+) MB",
        lambda: (constant("jobs", "MAX_RESULT_BYTES") / (1 << 20),),
        ("test_the_result_comes_along_on_request_unless_it_is_too_large_or_gone",),
    ),
    Promise(
        r"docs/webhooks",
        r"than (\d+) minutes away",
        lambda: (constant("", "TOLERANCE_SECONDS") / 60,),
        ("test_old_and_future_requests_are_refused_after_five_minutes",),
    ),
    Promise(
        r"docs/webhooks",
        r"2xx within (\d+) seconds",
        lambda: (constant("jobs", "ATTEMPT_SECONDS"),),
        ("test_a_receiver_that_never_answers_is_left_after_a_time",),
    ),
    Promise(r"docs/webhooks", r"\b2xx\b", tests=("test_an_attempt_comes_by_itself_when_it_is_due",)),
    Promise(
        r"docs/webhooks",
        r"for so long, up to (\d+) hours",
        lambda: (constant("jobs", "LONGEST_RETRY_AFTER") / 3600,),
        ("test_pauses_grow_vary_and_heed_the_receiver",),
    ),
    Promise(
        r"docs/webhooks",
        r"(\d+) attempts are made, with pauses of (\d+) seconds, (\d+) and (\d+) minutes, "
        r"and (\d+), (\d+), (\d+), (\d+), (\d+) and (\d+) hours: about (\d+) days",
        lambda: (
            len(DELAYS) + 1,
            DELAYS[0],
            *(seconds / 60 for seconds in DELAYS[1:3]),
            *(seconds / 3600 for seconds in DELAYS[3:]),
            round(sum(DELAYS) / 86400),
        ),
        ("test_a_receiver_that_stays_away_is_tried_for_three_days_and_then_given_up_visibly",),
    ),
    Promise(
        r"docs/webhooks",
        r"at most (\d+) attempts run at a time, (\d+) of them to one host and (\d+) for one key",
        lambda: tuple(constant("jobs", name) for name in ("THREADS", "PER_TARGET", "PER_OWNER")),
        ("test_slow_receivers_stop_no_other_and_get_few_requests_at_once",),
    ),
    Promise(
        r"docs/webhooks",
        r"For (\d+) hours deliveries are signed with both",
        lambda: (constant("jobs", "ROTATION_SECONDS") / 3600,),
        ("test_two_secrets_sign_while_one_is_rotated",),
    ),
    Promise(
        r"docs/webhooks",
        r"Two ways to name",
        tests=("test_each_end_of_a_job_is_an_event",),
    ),
    # Engine
    Promise(
        r"docs/library|docstring Engine\.transcribe",
        r"mono, (\d+) kHz",
        lambda: (constant("", "SAMPLE_RATE") / 1000,),
        ("test_all_inputs_give_the_same_text",),
    ),
    Promise(
        r"docs/development",
        r"takes about (\d+) minutes \(",
        lambda: (float(in_script("gpu_acceptance.py", r"^MINUTES = ([\d.]+)$")),),
        ("test_a_probe_without_time_is_skipped_and_says_how_to_run_it",),
    ),
    Promise(
        r"docs/library",
        r"within (\d+) second while it\s+waits for a\s+download",
        lambda: (1,),
        ("test_the_wait_for_a_download_ends_as_promised", "test_cancelling_ends_the_wait_for_a_download"),
    ),
    Promise(
        r"docs/architecture",
        r"windows of up to (\d+) s",
        lambda: (constant("engine", "WINDOW_SECONDS"),),
        ("test_windows_cover_all_speech_and_are_at_most_thirty_seconds",),
    ),
    Promise(
        r"docs/architecture",
        r"A GPU has (\d+) lanes",
        lambda: (constant("engine/worker", "GPU_LANES"),),
        ("test_lanes_take_the_cores_of_a_cpu",),
    ),
    Promise(
        r"docs/models",
        r"again for (\d+) minute\. .*up to (\d+)\s+hour",
        lambda: (
            constant("engine/models", "UNREACHABLE_SECONDS") / 60,
            constant("engine/models", "MOST_UNREACHABLE_SECONDS") / 3600,
        ),
        ("test_a_hub_that_stays_away_is_asked_more_and_more_rarely",),
    ),
    Promise(r"docstring Engine$", r"(\d+) % of the free memory", lambda: (100 * constant("engine", "MODEL_SHARE"),)),
    Promise(
        r"docstring Engine$",
        r"(\d+) MB\s+for an hour",
        lambda: (
            round(
                3600 * constant("", "SAMPLE_RATE") * constant("engine/audio", "SAMPLE_BYTES") / 1e6,
                ndigits=-1,
            ),
        ),
    ),
    Promise(
        r"docstring Engine$",
        r"-1 for ever, 0 to unload it after each job|None or 0 for any length",
        tests=(
            "test_a_model_is_loaded_once_and_stays",
            "test_keep_alive_zero_frees_after_use_and_loads_again",
            SENTINELS,
        ),
    ),
    Promise(
        r"docstring Segment",
        r"above (\d\.\d) the text repeats",
        lambda: (constant("engine/whisper", "MAX_COMPRESSION_RATIO"),),
        ("test_compression_ratio_tells_repetition",),
    ),
    Promise(
        r"docstring Segment",
        r"above 0 the first attempts had failed",
        tests=("test_fallback_goes_from_the_beam_to_rising_temperatures_and_keeps_the_best",),
    ),
    Promise(
        r"docstring (Segment|Word)",
        r"at least a millisecond apart",
        tests=("test_every_span_has_a_length_and_none_overlaps_another",),
    ),
    Promise(
        r"docstring (Progress|JobStatus|Word)$",
        r"from 0 to 1\b",
        tests=("test_progress_rises_to_one_through_the_stages", "test_every_word_has_a_place_and_a_speaker"),
    ),
    Promise(r"docstring JobStatus", r"1 for the job that is taken next", tests=("test_places_count_from_one",)),
    Promise(
        r"help",
        r"counted from 1\b",
        tests=("test_the_audio_track_that_was_asked_for_is_decoded",),
    ),
    # Personal data
    Promise(
        r"docs/redaction",
        r"of (three) digits or more",
        lambda: (constant("engine/redaction", "LEAST_DIGITS"),),
        ("test_what_is_found",),
    ),
    Promise(
        r"docs/redaction",
        r"at least (\d+) % of the words of names are\s+replaced, and at least (\d+) % of the replaced",
        lambda: _numbers_of_test("engine/redaction/test_finding.py", "RECALL, PRECISION"),
        ("test_recall_and_precision_of_names",),
    ),
    # Channels
    Promise(
        r"docstring (Segment|Word|Transcript|Redaction|Turn)$",
        r"channel(?:s that were recognised separately)?, counted from 0\b",
        tests=("test_the_words_of_each_channel_are_those_of_its_voice",),
    ),
    Promise(
        r"docs/api",
        r"Channels count from 0\b",
        tests=("test_the_words_of_each_channel_are_those_of_its_voice",),
    ),
    Promise(r"docs/api", r"RTTM counts\s+channels from 1\b", tests=("test_rttm_has_the_channel_of_each_turn",)),
    Promise(r"docs/api", r"`` for channel 0\b", tests=("test_the_words_of_each_channel_are_those_of_its_voice",)),
    Promise(
        r"docs/api",
        r"Crosstalk below (-\d+) dB",
        lambda: (constant("engine", "AUTO_CROSSTALK"),),
        ("test_auto_separates_only_what_surely_is_separate",),
    ),
    Promise(
        r"docs/api",
        r"with its delay \(up to ([\d.]+) s\)",
        lambda: (constant("engine", "MOST_DELAY_SECONDS"),),
        ("test_crosstalk_is_found_with_its_level_and_delay",),
    ),
    Promise(
        r"docs/api",
        r"a voice less than (\d+) dB above the crosstalk",
        lambda: (constant("engine", "CROSSTALK_MARGIN"),),
        ("test_only_crosstalk_is_silenced",),
    ),
    Promise(
        r"docs/api",
        r"takes up to (\d+) channels",
        lambda: (constant("engine", "MAX_CHANNELS"),),
        ("test_more_than_eight_channels_cannot_be_separated",),
    ),
    # The client
    Promise(
        rf"{CLIENT}\.(wait|events)",
        r"for (two|\d+) minutes",
        lambda: (constant("client", "RESTART_SECONDS") / 60,),
        ("test_waiting_outlasts_a_restart", "test_a_server_that_stays_away_is_not_waited_for_for_ever"),
    ),
    Promise(
        rf"{CLIENT}\.submit", r"begins at 0", tests=("test_a_second_attempt_tells_its_progress_from_the_beginning",)
    ),
    # The command line
    Promise(
        r"docs/command-line",
        r"\| (\d) \| all went well \|\n\| (\d) \| a file failed.*\n\| (\d) \| wrong usage \|\n\| (\d+) \| interrupted",
        lambda: tuple(constant("cli", f"EXIT_{name}") for name in ("OK", "FAILED", "USAGE", "INTERRUPTED")),
        (
            "test_files_that_fail_do_not_stop_the_others",
            "test_wrong_usage_exits_with_2_and_says_what_is_wrong",
            "test_ctrl_c_ends_a_transcription_cleanly",
        ),
    ),
    Promise(
        r"help",
        r"(\d) all went well, (\d) something failed, (\d) wrong usage, (\d+) interrupted",
        lambda: tuple(constant("cli", f"EXIT_{name}") for name in ("OK", "FAILED", "USAGE", "INTERRUPTED")),
    ),
    # Operations
    Promise(
        r"docs/operations",
        r"streams end within (\d+) seconds",
        lambda: (constant("server/realtime", "HEARTBEAT_SECONDS"),),
        ("test_a_stream_ends_soon_after_its_key_was_revoked",),
    ),
    Promise(
        r"docs/operations",
        r"at most (\d\.\d) GiB on a GPU, and a sixteenth",
        lambda: (COPY_BYTES / (1 << 30),),
        ("test_copies_are_bounded_over_all_jobs",),
    ),
    Promise(
        r"docs/operations",
        r"more than a quarter of the free memory|takes another 1\.3 GB",
        tests=("test_without_the_memory_for_it_ctranslate2_encodes", "test_the_document_tells_the_largest_batches"),
    ),
    Promise(
        r"docs/operations",
        r"up to (\d+) windows",
        lambda: (max(SIZES),),
        ("test_it_is_that_of_long_windows_on_all_lanes_at_once",),
    ),
    Promise(
        r"docs/operations",
        r"windows of (\d+) s\s+that fit into the batch of one of (\d+) lanes",
        lambda: (constant("engine", "WINDOW_SECONDS"), constant("engine", "GPU_LANES")),
        ("test_the_document_tells_the_largest_batches",),
    ),
    Promise(r"docs/operations", r"mode 0700", tests=("test_only_the_user_of_the_server_can_open_its_files",)),
    Promise(
        r"docs/operations",
        r"its log within (\d+) minute",
        lambda: (constant("jobs", "OVERDUE_SECONDS") / 60,),
        ("test_deleted_content_is_gone_a_minute_later_in_every_way_of_deletion",),
    ),
    Promise(
        r"docs/operations",
        r"IPv6 /(\d+) network",
        lambda: (constant("server", "IPV6_PREFIX"),),
        ("test_the_network_of_a_client", "test_addresses_of_one_client_are_one_network"),
    ),
    Promise(
        r"docs/operations",
        r"up to (\d+) seconds for their turn",
        lambda: (constant("server/uploads", "TURN_SECONDS"),),
        ("test_a_key_with_all_its_uploads_under_way_is_told_to_wait",),
    ),
    Promise(
        r"docs/operations|setting MIN_UPLOAD",
        r"over (\d+) seconds",
        lambda: (constant("server/uploads", "WINDOW_SECONDS"),),
        ("test_silence_ends_the_wait_after_the_window", "test_rate_and_deadline_are_as_configured"),
    ),
    Promise(
        r"docs/operations|setting MAX_(CONNECTIONS|RESPONSE_MEMORY)",
        r"one address may have half",
        tests=("test_an_address_may_have_half_of_the_connections",),
    ),
    Promise(
        r"docs/operations",
        r"the head of a request \| (\d+) seconds",
        lambda: (constant("server/connections", "HEAD_SECONDS"),),
        ("test_a_silent_connection_is_closed",),
    ),
    Promise(
        r"docs/operations",
        r"closed after (\d+) seconds in which it takes nothing, or when it takes less than (\d+) bytes",
        lambda: (
            constant("server/connections", "TAKE_SECONDS"),
            constant("server/connections", "LEAST_BYTES_PER_SECOND"),
        ),
        ("test_a_client_that_takes_too_little_is_cut_off_soon", "test_a_socket_that_is_not_read_is_cut_off"),
    ),
    Promise(
        r"docs/operations",
        r"up to 2 open files",
        tests=("test_connections_and_their_uploads_fit_the_files_that_may_be_open",),
    ),
    Promise(r"docs/operations", r"`` to 0\b", tests=(SENTINELS,)),
    Promise(
        r"docs/operations",
        r"at most (\d+) seconds for the collector",
        lambda: (constant("telemetry", "FLUSH_SECONDS"),),
        ("test_a_collector_that_does_not_answer_holds_up_the_stop_for_a_bounded_time",),
    ),
    Promise(
        r"docs/operations",
        r"less than (\d+) days is a warning; one .* a clock that is off by more than (\d+) seconds",
        lambda: (constant("cli/doctor", "FEW_DAYS"), constant("cli/doctor", "SKEW_SECONDS")),
        ("test_the_end_of_a_certificate_is_told_before_it_comes", "test_a_clock_that_is_wrong_is_told"),
    ),
    Promise(
        r"docs/operations",
        r"(\d) when nothing is wrong, (\d) when something failed, (\d) for wrong usage",
        lambda: tuple(constant("cli", f"EXIT_{name}") for name in ("OK", "FAILED", "USAGE")),
        ("test_a_user_learns_what_a_user_may_know", "test_wrong_usage_has_its_exit_code"),
    ),
    Promise(
        r"docs/operations",
        r"at (\d+) kbit/s",
        lambda: (8 * constant("access", "LEAST_BYTES_PER_SECOND") / 1000,),
        ("test_what_is_given_back_and_what_is_not",),
    ),
    Promise(
        r"docs/operations",
        r"the requests of up to (\d+) seconds",
        lambda: (constant("jobs", "FLUSH_SECONDS"),),
        ("test_a_process_that_is_killed_loses_few_requests_and_no_job",),
    ),
    Promise(
        r"docstring (Client|AsyncClient)\.usage",
        r"at most (\d+) days before",
        lambda: (constant("jobs", "MAX_DAYS") - 1,),
        ("test_days_are_checked",),
    ),
    # Settings and the flags that repeat them
    Promise(
        r"setting WHISPER_(RATE_LIMIT|QUOTA|AUTH_FAILURE_LIMIT)",
        r"as in \d+/minute; \d+/day|as in \d+ minutes/day; \d+ jobs/month|as in \d+/minute",
        tests=("test_rates_are_read", "test_quotas_are_read"),
    ),
    Promise(
        r"setting WHISPER_USAGE_RETENTION_DAYS",
        r"0 = none is recorded",
        tests=("test_nothing_is_charged_without_a_quota_where_no_usage_is_recorded",),
    ),
    Promise(
        r"help|setting WHISPER_API_PORT|docstring Server",
        r"0 = any free one|port 0 any free one",
        tests=("test_any_free_port_of_a_host",),
    ),
    Promise(r"setting HTTP_WORKER_NUMBER", r"0 = CPU count", tests=("test_zero_workers_are_as_many_as_cpus",)),
    Promise(
        r"setting MODEL_KEEP_ALIVE",
        r"-1 = stay resident, 0 = free after each job",
        tests=("test_a_model_is_loaded_once_and_stays", "test_models_are_freed_after_each_job_when_told_so"),
    ),
    Promise(r"setting MAX_AUDIO_SECONDS", r"(\d+) hours as shipped", lambda: (_default("MAX_AUDIO_SECONDS") / 3600,)),
    Promise(
        r"setting (MAX|MIN)_",
        r"0 = (?:any length|any rate|no limit of its own)",
        tests=(SENTINELS, "test_any_byte_ends_a_silence_when_no_least_rate_is_set"),
    ),
    Promise(
        r"docs/operations",
        r"first (\d+) addresses",
        lambda: (constant("access", "REFUSED_ADDRESSES"),),
        ("test_failed_authentications_are_a_bounded_number_of_entries",),
    ),
    Promise(
        r"docs/operations",
        r"up to (\d+) entries wait",
        lambda: (constant("access", "MAX_WAITING"),),
        ("test_entries_outlast_a_full_disk_and_lost_ones_are_counted",),
    ),
    Promise(
        r"docs/operations|setting WHISPER_AUDIT|help",
        r"0 (?:switches the trail off|= keep no trail)",
        tests=("test_without_a_retention_nothing_is_recorded", "test_zero_days_record_nothing_and_old_entries_go"),
    ),
    Promise(
        r"docstring AuditRecord",
        r"(\d+) when the client went away",
        lambda: (constant("server", "CLIENT_GONE"),),
        ("test_a_client_that_goes_away_is_recorded",),
    ),
    Promise(r"setting SYNC", r"0 = until it ends", tests=("test_a_wait_without_a_limit_lasts_until_the_job_ends",)),
)


def _value(text: str) -> float:
    return WORDS.get(text.lower()) or float(text)


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.words)
def test_a_promise_holds(promise: Promise) -> None:
    found = [
        (name, match)
        for name, text in texts().items()
        if re.match(promise.where, name)
        for match in re.finditer(promise.words, text)
    ]
    assert found, "no text makes this promise any more: remove its row"
    for name, match in found:
        assert tuple(map(_value, match.groups())) == promise.values(), name
    assert promise.values() or promise.tests
    assert {*promise.tests} <= names_of_tests(), "the test that held this has another name now"


@pytest.mark.parametrize("name", [name for name, text in texts().items() if NUMBER.search(text)])
def test_every_number_is_held(name: str) -> None:
    text = texts()[name]
    for promise in PROMISES:
        if re.match(promise.where, name):
            text = re.sub(promise.words, "", text)
    text = NAMES.sub("", text)
    left = [text[max(0, match.start() - 40) : match.end() + 40] for match in NUMBER.finditer(text)]
    assert left == [], "add a row to PROMISES, or take the number out of the text"


# --- behaviour that no other test shows ---


def test_an_installation_fits_the_disk_as_promised() -> None:
    files = [file for distribution in importlib.metadata.distributions() for file in distribution.files or ()]
    assert 1e9 < sum(file.size or 0 for file in files) < 9e9


def test_the_script_runs_the_tests_in_three_processes() -> None:
    assert "${TEST_WORKERS:-3}" in (ROOT / "scripts" / "test").read_text(encoding="utf-8")


def test_the_wait_for_a_download_ends_as_promised() -> None:
    constants = _constants("engine/models")
    assert max(constants["STOP_SECONDS"]) + max(constants["POLL_SECONDS"]) < 1


@on_a_loop
async def test_every_status_in_the_documents_is_one_of_the_api(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app, app.client() as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    served = {
        status for methods in paths.values() for operation in methods.values() for status in operation["responses"]
    }
    for name, text in texts().items():
        if name.startswith("docs/"):
            assert {*re.findall(r"\b[245]\d\d\b(?! bytes)", NAMES.sub("", text))} <= served, name


@on_a_loop
async def test_a_wait_is_bounded_as_promised(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        job_id = await app.submit(client)
        await app.finish(client, job_id)
        assert (await client.get(f"/transcription/{job_id}?wait=60")).status_code == 200
        assert (await client.get(f"/transcription/{job_id}?wait=61")).status_code == 400


@on_a_loop
async def test_zero_workers_are_as_many_as_cpus(tmp_path: Path) -> None:
    async with inside(tmp_path, http_workers=0) as app, app.client() as client:
        assert (await client.get("/status")).json()["server"]["worker_number"] == os.cpu_count()


LIMITS = (
    "max_jobs_per_key",
    "max_speakers_per_key",
    "max_uploads_per_key",
    "max_uploads_per_address",
    "min_upload_bytes_per_second",
)


@on_a_loop
async def test_a_limit_of_zero_is_no_limit(tmp_path: Path) -> None:
    none: dict[str, Any] = dict.fromkeys((*LIMITS, "max_audio_seconds"), 0)
    executor = FakeExecutor(held=True)
    async with (
        inside(tmp_path, executor, enable_authorization=True, **none) as app,
        app.client(app.token("a")) as client,
    ):
        jobs = await asyncio.gather(*(app.submit(client) for _ in range(3)))
        assert len({*jobs}) == 3
        executor.release()


@on_a_loop
async def test_a_wait_without_a_limit_lasts_until_the_job_ends(tmp_path: Path) -> None:
    executor = FakeExecutor(held=True)
    async with inside(tmp_path, executor, sync_timeout_seconds=0) as app, app.client() as client:
        waiting = asyncio.create_task(
            client.post("/transcribe", data={"sync": "true"}, files={"file": ("a.wav", AUDIO)})
        )
        await app.until(lambda: executor.started)
        assert not waiting.done()
        executor.release()
        assert (await waiting).status_code == 200


def test_an_address_may_have_half_of_the_connections() -> None:
    from whisper_api.server.connections.settings import bounds_of

    bounds = bounds_of(Config(max_connections=200), None)
    assert (bounds.connections, bounds.connections_per_address) == (200, 100)
