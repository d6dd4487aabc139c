"""Shared code of the measuring scripts: runs in turn, resource use, accuracy, tables, records and plots.

A script names its sides, runs them in turn, and compares pairs of them::

    from measuring import Comparison, Pair, Report, arguments, needs, resident, sample, take_turns

    parser = arguments(__doc__, runs=5)             # --runs, --audio, --json, --plot, --quick ...
    options = needs.parsed(parser, needs.MODEL, needs.WHISPERX)  # ends at once where something is missing
    with resident("peers:whisperx", **settings) as theirs, resident("peers:ours", **settings) as ours:
        sides = {
            "whisperx": lambda: theirs.run(path=str(audio.path)),       # a Sample
            "ours": lambda: heard(ours.run(path=str(audio.path)), audio),   # with its words and word errors
        }
        samples = take_turns(sides, runs=options.runs)          # A, B, A, B; the first of each is discarded
    comparison = Comparison("10 s clip", samples, [Pair("ours", "whisperx", by="wall", first=30, then=45)])
    report = Report("latency", options)
    report.add(comparison)
    report.finish()                                 # prints what was missed, writes --json and --plot; 1 when missed

``served(folder, models_dir())`` starts this project's server, and its ``send(path)`` returns a sample. A side is a
function without arguments that returns a :class:`Sample`. There are three ways to make a sample:

- ``with sample(pids=[server.pid]) as run: ...; run.values["requests"] = 10`` measures a running process, such as a
  server.
- ``resident("module:function", **settings)`` starts a child process that calls ``function(**settings)``. That call
  returns the function for one job. The keyword arguments of ``run()`` are the job's, and the job returns a dictionary
  with ``text`` and further values for the record.
- :func:`one_process` runs a program to its end.
"""

from measuring.children import Resident, one_process, resident
from measuring.floor import (
    SHAPES,
    Ceilings,
    Shape,
    ceilings,
    diarization_floor,
    measured_ceilings,
    wav2vec2_floor,
    whisper_floor,
)
from measuring.machine import Machine, exact_seconds, machine, usage_of
from measuring.options import arguments, models_dir
from measuring.report import Comparison, Pair, Report, table
from measuring.sampling import Sample, median, sample, take_turns
from measuring.serving import Served, served
from measuring.speech import Piece, Recording, clip, heard, recording, sample_call, word_errors

__all__ = [
    "SHAPES",
    "Ceilings",
    "Comparison",
    "Machine",
    "Pair",
    "Piece",
    "Recording",
    "Report",
    "Resident",
    "Sample",
    "Served",
    "Shape",
    "arguments",
    "ceilings",
    "clip",
    "diarization_floor",
    "exact_seconds",
    "heard",
    "machine",
    "measured_ceilings",
    "median",
    "models_dir",
    "one_process",
    "recording",
    "resident",
    "sample",
    "sample_call",
    "served",
    "table",
    "take_turns",
    "usage_of",
    "wav2vec2_floor",
    "whisper_floor",
    "word_errors",
]
