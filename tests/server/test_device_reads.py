"""The device is never asked for on the event loop, since the first answer may import torch and start CUDA."""

from __future__ import annotations

import threading
from pathlib import Path

from server.inside import AUDIO, inside, on_a_loop
from whisper_api.jobs.executor import ExecutorFacts
from whisper_api.options import TranscriptionOptions
from whisper_api.testing import FakeExecutor


class WatchedExecutor(FakeExecutor):
    """Notes the threads that ask for the device, the model or the facts."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, threading.Thread]] = []

    @property
    def device(self) -> str:  # type: ignore[override]
        self.asked.append(("device", threading.current_thread()))
        return "cpu"

    def facts(self) -> ExecutorFacts:
        self.asked.append(("facts", threading.current_thread()))
        return super().facts()

    def model_name(self, options: TranscriptionOptions) -> str:
        self.asked.append(("model_name", threading.current_thread()))
        return super().model_name(options)


@on_a_loop
async def test_no_request_asks_for_the_device_on_the_event_loop(tmp_path: Path) -> None:
    executor = WatchedExecutor()
    executor.held = True
    async with inside(tmp_path, executor) as there, there.client() as client:
        files = {"file": ("a.wav", AUDIO)}
        first = await there.running(client)
        waiting = await there.submit(client)
        for address in (
            "/status",
            f"/transcription/{first}",
            f"/transcription/{waiting}",
            "/transcriptions",
            "/v1/models",
            "/v1/models/whisper-1",
            "/readyz",
            "/",
            "/openapi.json",
        ):
            answer = await client.get(address)
            assert answer.status_code < 500, address
        await client.post("/transcriptions", files=files)
        executor.release()
        for address, field in (
            ("/v1/audio/transcriptions", {"model": "whisper-1"}),
            ("/detect-language", {}),
            ("/transcribe", {"sync": "true"}),
        ):
            assert (await client.post(address, files=files, data=field)).status_code < 500, address
        assert (await client.post("/asr", files={"audio_file": ("a.wav", AUDIO)})).status_code < 500
        async with client.stream("GET", f"/transcription/{first}/events") as events:
            await events.aread()
    assert {what for what, _ in executor.asked} == {"device", "facts", "model_name"}
    loop = threading.current_thread()
    assert [what for what, thread in executor.asked if thread is loop] == []
