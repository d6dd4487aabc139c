"""Requests with files that end before their job is made."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from server.inside import PATIENCE_SECONDS, inside, on_a_loop


@on_a_loop
async def test_a_request_that_is_canceled_while_its_job_is_reserved_holds_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with inside(tmp_path, enable_authorization=True, max_jobs_per_key=1) as app:
        reserve = app.service.reserve
        reserved, go_on = asyncio.Event(), threading.Event()
        reservations = []
        loop = asyncio.get_running_loop()

        def slowly(*args: Any, **options: Any) -> Any:
            reservations.append(reserve(*args, **options))
            loop.call_soon_threadsafe(reserved.set)
            go_on.wait(PATIENCE_SECONDS)
            return reservations[0]

        async with app.client(app.token("a")) as client:
            monkeypatch.setattr(app.service, "reserve", slowly)
            request = asyncio.create_task(app.post(client))
            await reserved.wait()
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            monkeypatch.undo()
            assert (await app.post(client)).status_code == 429
            go_on.set()
            await app.until(lambda: not reservations[0].open, "the reservation is released")
            await app.submit(client)
