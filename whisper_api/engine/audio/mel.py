"""Whisper's log-mel features: on the CPU with NumPy, on a GPU with torch.

The features are those of Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (2022), section
2.2, as in OpenAI's code and faster-whisper: a short-time Fourier transform of 25 ms every 10 ms, Slaney's mel filters,
and the logarithm of the energies, limited to 8 decades below the maximum.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.audio.device_copies import COPIES
from whisper_api.schema import SAMPLE_RATE

if TYPE_CHECKING:
    import torch

FFT_SIZE = 400
BINS = FFT_SIZE // 2 + 1
HOP = 160
PADDING = FFT_SIZE // 2
FLOOR = 1e-10
DECADES = 8.0
# Number of windows whose spectra are on a device at once.
AT_ONCE = 8
# Number of frames whose spectra stay in a core's cache between the steps.
BLOCK = 128

Floats = NDArray[np.float32]


@functools.cache
def mel_filters(mels: int) -> Floats:
    """Slaney's mel filters: triangles of equal area, evenly spaced below 1 kHz and logarithmically above.

    The source is Slaney, "Auditory Toolbox" (1998).

    Args:
        mels: number of filters: 80, or 128 for large-v3 and turbo.

    Returns:
        float32, shape (mels, 201), read-only.
    """
    # 15 mels are 1 kHz, and each further 27 mels are a factor of 6.4.
    top = 15.0 + 27.0 * math.log(SAMPLE_RATE / 2 / 1000.0) / math.log(6.4)
    points = np.linspace(0.0, top, mels + 2)
    hertz = np.where(points < 15.0, points * 200.0 / 3.0, 1000.0 * 6.4 ** ((points - 15.0) / 27.0))
    bins = np.fft.rfftfreq(FFT_SIZE, 1.0 / SAMPLE_RATE)
    widths = np.diff(hertz)
    rising = (bins - hertz[:-2, None]) / widths[:-1, None]
    falling = (hertz[2:, None] - bins) / widths[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    areas = (hertz[2:] - hertz[:-2]) / 2.0
    filters: Floats = (triangles / areas[:, None]).astype(np.float32)
    filters.flags.writeable = False
    return filters


def log_mel(audio: Floats, frames: int, mels: int = 80) -> Floats:
    """Log-mel features of audio that is padded with silence. Starts no threads.

    Args:
        audio: float32, shape (samples,), 16 kHz.
        frames: number of frames, 100 a second, at least 2; longer audio is truncated.
        mels: number of mel bands, see :func:`mel_filters`.

    Returns:
        float32, shape (mels, frames).
    """
    samples = frames * HOP
    audio = audio[:samples]
    # Only frames that contain audio are computed; all other frames of the padding are equal.
    with_audio = min(frames, math.ceil((len(audio) + PADDING) / HOP))
    padded = np.zeros(samples + 2 * PADDING, np.float32)
    padded[PADDING : PADDING + len(audio)] = audio
    padded[:PADDING] = padded[2 * PADDING : PADDING : -1]
    padded[-PADDING:] = padded[-PADDING - 2 : -2 * PADDING - 2 : -1]
    features = np.zeros((mels, frames), np.float32)
    _filter(_power(padded, with_audio), mels, features[:, :with_audio])
    np.maximum(features, FLOOR, out=features)
    np.log10(features, out=features)
    np.maximum(features, features.max() - DECADES, out=features)
    features += 4.0
    features *= 0.25
    return features


def log_mel_on_device(audio: Sequence[Floats], frames: int, mels: int, device: str) -> torch.Tensor:
    """Log-mel features of several pieces of audio, computed on a device.

    The features are ready when this function returns, for every CUDA stream. Calls from two threads do not wait for
    each other.

    Args:
        audio: float32, shape (samples,) each, 16 kHz, in the host's memory. What has a copy on the device is not sent.
        frames: number of frames of each piece, 100 a second, at least 2; longer audio is truncated.
        mels: number of mel bands, see :func:`mel_filters`.
        device: torch's name of the device: ``cuda:0``, ``cpu``.

    Returns:
        float32 on the device, shape (pieces, mels, frames).
    """
    import torch

    on_gpu = torch.device(device).type == "cuda"
    samples = frames * HOP
    if not on_gpu:
        return _torch_log_mel(_padded(audio, samples, device), mels, device)
    stream = _stream(device)
    with torch.cuda.stream(stream):
        there = _padded(audio, samples, device)
        # A window's spectra take 17 MB. torch keeps freed memory for this stream, so other streams cannot use it.
        features = torch.cat([_torch_log_mel(some, mels, device) for some in there.split(AT_ONCE)])  # type: ignore[no-untyped-call]
    stream.synchronize()
    return features


def _padded(audio: Sequence[Floats], samples: int, device: str) -> torch.Tensor:
    """Pieces of audio on the device, shape (pieces, samples), each padded with silence or truncated."""
    import torch

    padded = torch.zeros((len(audio), samples), device=device)
    for row, piece in zip(padded, audio, strict=True):
        piece = piece[:samples]
        row[: len(piece)] = COPIES.tensor(piece, device)
    return padded


def _torch_log_mel(audio: torch.Tensor, mels: int, device: str) -> torch.Tensor:
    import torch

    window, filters = _constants(mels, device)
    spectrum = torch.stft(audio, FFT_SIZE, HOP, window=window, center=True, pad_mode="reflect", return_complex=True)
    power = torch.view_as_real(spectrum[..., :-1]).square().sum(-1)
    features = (filters @ power).clamp_(min=FLOOR).log10_()
    features = torch.maximum(features, features.amax((1, 2), keepdim=True) - DECADES)
    return features.add_(4.0).mul_(0.25)


@functools.cache
def _constants(mels: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    return torch.from_numpy(_window().copy()).to(device), torch.from_numpy(mel_filters(mels).copy()).to(device)


_streams = threading.local()


def _stream(device: str) -> torch.cuda.Stream:
    """This thread's CUDA stream on a device, so that its work does not wait for other threads' work."""
    import torch

    streams: dict[str, Any] = _streams.__dict__
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream: torch.cuda.Stream = streams[device]
    return stream


@functools.cache
def _window() -> Floats:
    window = np.hanning(FFT_SIZE + 1)[:-1].astype(np.float32)
    window.flags.writeable = False
    return window


def _power(padded: Floats, frames: int) -> Floats:
    """Power spectra of the first frames, shape (201, frames)."""
    window = _window()
    windows = np.lib.stride_tricks.sliding_window_view(padded, FFT_SIZE)[::HOP]
    power = np.empty((BINS, frames), np.float32)
    pieces = np.empty((BLOCK, FFT_SIZE), np.float32)
    spectra = np.empty((BLOCK, BINS), np.complex64)
    for start in range(0, frames, BLOCK):
        count = min(BLOCK, frames - start)
        piece, spectrum = pieces[:count], spectra[:count]
        np.multiply(windows[start : start + count], window, out=piece)
        np.fft.rfft(piece, out=spectrum)  # type: ignore[arg-type]  # NumPy's types know no single precision here
        parts = spectrum.view(np.float32)
        np.multiply(parts, parts, out=parts)
        np.add(parts[:, 0::2].T, parts[:, 1::2].T, out=power[:, start : start + count])
    return power


def _filter(power: Floats, mels: int, out: Floats) -> None:
    """Apply the mel filters one by one.

    Most of the filter matrix is zero. A matrix product would also start threads for a millisecond of work, and these
    threads would spin and occupy cores that other threads need.
    """
    scratch = np.empty(power.shape[1], np.float32)
    for row, (first, weights) in zip(out, _bands(mels), strict=True):
        np.multiply(power[first], weights[0], out=row)
        for offset, weight in enumerate(weights[1:], 1):
            np.multiply(power[first + offset], weight, out=scratch)
            row += scratch


@functools.cache
def _bands(mels: int) -> tuple[tuple[int, tuple[np.float32, ...]], ...]:
    """The first bin and the weights of each filter; a filter between two bins has a single weight, zero."""
    bands = []
    for weights in mel_filters(mels):
        used = np.flatnonzero(weights)
        first, last = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
        bands.append((first, tuple(weights[first : last + 1])))
    return tuple(bands)
