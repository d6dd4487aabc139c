"""What the devices have done since the engine was made: numbers for an operator."""

from __future__ import annotations

import msgspec


class WorkerCounts(msgspec.Struct):
    """The counters of one worker.

    Attributes:
        busy_seconds: seconds in which lanes ran batches, summed over the lanes.
        batches: number of batches that ran.
        items: number of work items in them.
        room: number of items that they could have held.
        out_of_memory: number of batches that did not fit into memory.
    """

    busy_seconds: float = 0.0
    batches: int = 0
    items: int = 0
    room: int = 0
    out_of_memory: int = 0


class DeviceStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """The work of one device.

    Attributes:
        device: ``cpu``, ``cuda:0`` ...
        lanes: number of batches that may run at once.
        counts: the counters of its worker.
        model_loads, model_unloads: number of models that were loaded and unloaded.
        free_bytes: free memory of a GPU; None for a CPU and where it cannot be read.
        encoder: what runs the encoder of the Whisper model on a GPU, and why; empty while none is loaded.
        node: the machine of a cluster that has the device; empty for this machine.
    """

    device: str
    lanes: int
    counts: WorkerCounts
    model_loads: int
    model_unloads: int
    free_bytes: int | None
    encoder: str = ""
    node: str = ""
