"""The ``openai`` package as a client of the server under test."""

from __future__ import annotations

from typing import Any

import httpx
import openai

from server.harness import RunningServer

__all__ = ["MODEL", "PATIENCE_SECONDS", "jobs", "named", "sdk"]

PATIENCE_SECONDS = 180.0
MODEL = "whisper-1"


def sdk(server: RunningServer, *, key: str | None = None, port: int | None = None, **options: Any) -> openai.OpenAI:
    """OpenAI's client as users make it, but without retries."""
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{port or server.port}/v1",
        api_key=key or server.user_key,
        **{"max_retries": 0, "timeout": PATIENCE_SECONDS, **options},
    )


def jobs(client: httpx.Client) -> list[dict[str, Any]]:
    """All jobs of the caller, newest first."""
    listed: list[dict[str, Any]] = client.get("/transcriptions", params={"limit": 1000}).json()["jobs"]
    return listed


def named(file: bytes, name: str = "call.wav") -> tuple[str, bytes]:
    return name, file
