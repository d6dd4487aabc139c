"""The sides of the benchmarks: each function loads models and returns a function for a job.

``measuring.resident("peers:whisperx_resident", ...)`` runs a side in a child process. All sides use the same
Whisper weights and, for alignment, the same wav2vec 2.0 with random weights: the text does not depend on alignment, and
the time of alignment does not depend on the weights.

Two changes adapt the peers without slowing them. whisperx splits sentences with NLTK's Punkt, whose data must be
downloaded; without the data, a regular expression splits sentences. Stock pyannote has no loader for the CAM++ of
an install without an account, so an adapter embeds the audio of each mask, one signal after another and without
padding.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from measuring import Sample, one_process
from measuring.children import SCRIPTS

Job = Callable[..., dict[str, Any]]


def cores() -> int:
    """Threads for a peer: one for each core, which serves it better than its own default of four on a small machine."""
    from whisper_api.engine.worker.device import physical_cores

    return physical_cores()


def with_alignment(folder: Path, models: Path) -> Path:
    """A models directory like another one, with an English alignment model of random weights in it.

    Args:
        folder: path of the new directory.
        models: the existing directory; the new directory links to its other models.
    """
    import random_models

    root = without_alignment(folder, models)
    random_models.make_alignment(root)
    return root


def without_alignment(folder: Path, models: Path) -> Path:
    """A models directory like another one, without its alignment models."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in models.iterdir():
        if entry.is_dir() and entry.name != "align":
            (folder / entry.name).symlink_to(entry, target_is_directory=True)
    return folder


def alignment_dir(models: Path) -> Path:
    """The directory of the English alignment model in a models directory."""
    return models / "align" / "en"


# --- Whisper API --------------------------------------------------------------------------------------------------


def ours(models: str, **options: Any) -> Job:
    """The engine, resident.

    Args:
        models: the models directory.
        options: defaults of :class:`whisper_api.TranscriptionOptions`.
    """
    from whisper_api import Engine, TranscriptionOptions

    engine = Engine(device="cpu", models_dir=models, offline=True)

    def job(path: str, **more: Any) -> dict[str, Any]:
        transcript = engine.transcribe(path, TranscriptionOptions(**{"language": "en", **options, **more}))
        segments = [{"start": s.start, "end": s.end, "text": s.text} for s in transcript.segments]
        return {
            "text": transcript.text,
            "segments": segments,
            "timings": transcript.timings,
            "word_times": transcript.word_times,
            "warnings": list(transcript.warnings),
        }

    return job


# --- whisperx -----------------------------------------------------------------------------------------------------


def whisperx_process(path: Path, weights: Path, folder: Path, *, align_dir: Path | None) -> Sample:
    """A ``whisperx`` process for each job: int8, beam 5, batch 8, its own VAD.

    Args:
        path: of the recording.
        weights: directory of the Whisper model.
        folder: where its output goes.
        align_dir: of the alignment model; None for no word times.
    """
    program = [sys.executable, "-c", "import peers; peers.whisperx_program()", str(path), "--model", str(weights)]
    program += ["--language", "en", "--device", "cpu", "--compute_type", "int8", "--threads", str(cores())]
    program += ["--output_dir", str(folder), "--output_format", "txt"]
    program += ["--no_align"] if align_dir is None else ["--model_dir", str(align_dir)]
    run = one_process(program, variables={"PYTHONPATH": os.pathsep.join(_python_path()), "HF_HUB_OFFLINE": "1"})
    run.text = (folder / f"{path.stem}.txt").read_text(encoding="utf-8")
    return run


def _python_path() -> Iterator[str]:
    yield str(SCRIPTS)
    if os.environ.get("PYTHONPATH"):
        yield os.environ["PYTHONPATH"]


def whisperx_program() -> None:
    """Run ``python -m whisperx``. Without NLTK's data, a regular expression splits sentences."""
    if "--no_align" not in sys.argv:
        spare_nltk()
    from whisperx.__main__ import cli

    cli()


class Sentences:
    """The part of NLTK's sentence splitter that whisperx uses."""

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in re.finditer(r"\S.*?(?:[.?!](?=\s)|$)", text, re.DOTALL)]


def spare_nltk() -> None:
    """Let whisperx cut sentences by a regular expression where NLTK's data is missing."""
    import nltk
    import whisperx.alignment

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        splitter = Sentences()
        whisperx.alignment.nltk_load = lambda _path: splitter


def whisperx_resident(weights: str, *, align_dir: str | None = None, defaults: bool = False) -> Job:
    """Whisperx with its models loaded: one job at a time, because its shared state allows no more.

    Args:
        weights: directory of the Whisper model.
        align_dir: of the alignment model; None for no word times.
        defaults: with what ``whisperx.load_model`` chooses by itself on a CPU (float32, four threads); else int8 and a
            thread for each core. Beam 5, batch 8 and pyannote's VAD either way.
    """
    import whisperx

    settings = {} if defaults else {"compute_type": "int8", "threads": cores()}
    model = whisperx.load_model(weights, "cpu", language="en", **settings)
    aligner = None
    if align_dir is not None:
        spare_nltk()
        aligner = whisperx.load_align_model("en", "cpu", model_dir=align_dir)

    def job(path: str) -> dict[str, Any]:
        audio = whisperx.load_audio(path)
        result = model.transcribe(audio, batch_size=8)
        if aligner is not None:
            result = whisperx.align(result["segments"], *aligner, audio, "cpu")
        return {"text": "\n".join(segment["text"].strip() for segment in result["segments"])}

    return job


# --- faster-whisper -----------------------------------------------------------------------------------------------


def batched(weights: str, *, beam_size: int = 5, batch_size: int = 8) -> Job:
    """faster-whisper's BatchedInferencePipeline in int8 with its own VAD, resident."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    model = WhisperModel(weights, device="cpu", compute_type="int8", cpu_threads=cores())
    pipeline = BatchedInferencePipeline(model)

    def job(path: str) -> dict[str, Any]:
        segments, _ = pipeline.transcribe(path, language="en", beam_size=beam_size, batch_size=batch_size)
        found = list(segments)
        return {
            "text": "\n".join(segment.text.strip() for segment in found),
            "decoded tokens": sum(len(segment.tokens) for segment in found),
        }

    return job


# --- pyannote -----------------------------------------------------------------------------------------------------


def stock_diarization(segmentation: str, campplus: str) -> Callable[[str], list[tuple[float, float, str]]]:
    """Pyannote's SpeakerDiarization with our models, set up as its pipelines 2.1 and 3.1.

    Args:
        segmentation: the checkpoint.
        campplus: the embedding's checkpoint.

    Returns:
        A function from a path to turns: start, end, speaker.
    """
    import torch
    from pyannote.audio import Model
    from pyannote.audio.pipelines import speaker_diarization as stock

    from whisper_api.engine.audio.decode import decode

    torch.set_num_threads(cores())
    adapter = _embedding_adapter(Path(campplus))
    # The constructor calls both functions; it accepts no loaded embedding model and always loads a PLDA.
    stock.PretrainedSpeakerEmbedding = lambda *_args, **_kwargs: adapter
    stock.get_plda = lambda *_args, **_kwargs: None
    pipeline = stock.SpeakerDiarization(
        segmentation=Model.from_pretrained(segmentation),
        clustering="AgglomerativeClustering",
        embedding_exclude_overlap=True,
        segmentation_batch_size=32,
        embedding_batch_size=32,
    )
    found = {"min_duration_off": 0.5817029604921046}
    # The pipeline has no public name for its segmentation model.
    if not pipeline._segmentation.model.specifications.powerset:  # noqa: SLF001
        found["threshold"] = 0.4442333667381752
    clustering = {"method": "centroid", "min_cluster_size": 15, "threshold": 0.7153814381597874}
    pipeline.instantiate({"segmentation": found, "clustering": clustering})

    def job(path: str) -> list[tuple[float, float, str]]:
        # pyannote reads paths with torchcodec, which needs FFmpeg's shared libraries, so the job passes samples.
        samples = torch.from_numpy(decode(path).audio.copy())[None]
        output = pipeline({"waveform": samples, "sample_rate": 16_000})
        annotation = getattr(output, "speaker_diarization", output)
        return [(turn.start, turn.end, str(name)) for turn, _, name in annotation.itertracks(yield_label=True)]

    return job


def _embedding_adapter(path: Path) -> Any:
    import numpy as np
    import torch
    from pyannote.audio.core.inference import BaseInference

    from whisper_api.engine.diarize.campplus import load_campplus
    from whisper_api.engine.diarize.embedding import DIMENSION

    network: Any = load_campplus(path)

    class Adapter(BaseInference):  # type: ignore[misc]
        sample_rate = 16_000
        dimension = DIMENSION
        metric = "cosine"
        min_num_samples = 1600

        def to(self, device: Any) -> Any:
            return self

        def __call__(self, waveforms: Any, masks: Any = None) -> Any:
            """(batch, 1, samples) and (batch, frames) to (batch, dimension); not a number where too short."""
            size = waveforms.shape[-1]
            wide = torch.nn.functional.interpolate(masks[:, None], size=size, mode="nearest")[:, 0] > 0.5
            found = np.full((len(waveforms), DIMENSION), np.nan, np.float32)
            with torch.inference_mode():
                for row, (waveform, mask) in enumerate(zip(waveforms[:, 0], wide, strict=True)):
                    signal = waveform[mask]
                    if len(signal) >= self.min_num_samples:
                        x = network.features(signal[None])
                        x = x - x.mean(dim=2, keepdim=True)
                        count = -(-x.shape[2] // network.stride)
                        x = network.trunk(x, np.zeros(count, dtype=np.int64))
                        found[row] = network.pool(x[0].T, [np.arange(count)], torch.float32)[0].numpy()
            return found

    return Adapter()
