"""Devices and compute types."""

from __future__ import annotations

import ctranslate2
import pytest

from whisper_api.engine.device import Device, choose_compute_type, choose_device, physical_cores
from whisper_api.errors import DeviceUnavailable, InvalidOption

gpus = ctranslate2.get_cuda_device_count()


def test_auto_is_a_gpu_where_there_is_one() -> None:
    assert choose_device("auto").kind == ("cuda" if gpus else "cpu")
    assert choose_device("cpu") == Device("cpu")


def test_a_gpu_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(DeviceUnavailable, match=f"cuda:{gpus + 3}"):
        choose_device(f"cuda:{gpus + 3}")


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cuda:", ""])
def test_a_device_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(InvalidOption, match="device"):
        choose_device(name)


def test_a_cpu_computes_in_int8_unless_told_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    cpu = Device("cpu")
    assert choose_compute_type(cpu) == "int8"
    assert choose_compute_type(cpu, "float32") == "float32"
    with caplog.at_level("WARNING"):
        chosen = choose_compute_type(cpu, "int8_float16")
    assert chosen in ctranslate2.get_supported_compute_types("cpu")
    assert "int8_float16" in caplog.text
    with pytest.raises(InvalidOption, match="int4"):
        choose_compute_type(cpu, "int4")


@pytest.mark.gpu
@pytest.mark.skipif(gpus == 0, reason="no CUDA device")
def test_a_gpu_computes_in_float16() -> None:
    assert choose_compute_type(Device("cuda")) == "float16"


def test_cores_and_memory_are_those_of_a_machine() -> None:
    import os

    assert 1 <= physical_cores() <= (os.cpu_count() or 1)
    memory = Device("cpu").total_memory()
    assert memory is None or memory > 1 << 28
