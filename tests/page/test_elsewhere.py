"""A page of another origin can use the API with a key, by the rules of a real browser."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")

from server.harness import RunningServer

from page.visits import Visit

# Requests with the headers that such programs send, and the response headers that they read.
CALLS = """async ([server, key, audio]) => {
    const sound = new Blob([Uint8Array.from(atob(audio), (each) => each.charCodeAt(0))]);
    const form = (fields) => {
        const data = new FormData();
        data.append("file", sound, "hello.wav");
        for (const [name, value] of Object.entries(fields)) data.append(name, value);
        return data;
    };
    const call = async (path, given = {}) => {
        const headers = { Authorization: `Bearer ${key}`, ...given.headers };
        const answer = await fetch(server + path, { ...given, headers });
        return [answer.status, Object.fromEntries(answer.headers), await answer.text()];
    };
    const plain = { language: "en", align: "false", diarize: "false" };
    const made = await call("/transcribe", {
        method: "POST", body: form(plain), headers: { "Idempotency-Key": "once", "X-Request-ID": "mine" },
    });
    const job = made[1].location;
    return {
        made,
        status: await call(`${job}?wait=60`),
        events: await call(`${job}/events`, { headers: { "Last-Event-ID": "0" } }),
        corrected: await call(`${job}/corrections`, {
            method: "PUT", body: "{}", headers: { "Content-Type": "application/json" },
        }),
        result: await call(`${job}/result?format=txt`),
        removed: await call(job, { method: "DELETE" }),
        openai: await call("/v1/audio/transcriptions", {
            method: "POST", body: form({ model: "whisper-1", language: "en" }), headers: { "X-Stainless-Lang": "js" },
        }),
        refused: await call("/v1/models/nothing", { headers: { "X-Stainless-Lang": "js" } }),
        stranger: await call("/status", { headers: { Authorization: "Bearer none" } }),
    };
}"""


def test_a_page_of_another_origin_calls_the_server(
    visit: Callable[..., Visit], page_server: RunningServer, hello: bytes
) -> None:
    page = visit(page_server).page
    # The other name of this machine is another origin to a browser, and its page has no policy of its own.
    page.goto(f"http://localhost:{page_server.port}/livez")
    assert page.evaluate("origin") != page_server.url
    audio = base64.b64encode(hello).decode()
    answers: dict[str, Any] = page.evaluate(CALLS, [page_server.url, page_server.user_key, audio])
    statuses = {name: answer[0] for name, answer in answers.items()}
    assert statuses == {
        **{"made": 202, "status": 200, "events": 200, "corrected": 200, "result": 200, "removed": 200},
        **{"openai": 200, "refused": 404, "stranger": 401},
    }
    headers = {name: answer[1] for name, answer in answers.items()}
    assert headers["made"]["x-request-id"] == "mine"
    assert headers["made"]["retry-after"]
    assert headers["openai"]["x-job-id"]
    assert headers["refused"]["x-should-retry"] == "false"
    assert "event: completed" in answers["events"][2]
    assert "Hello" in answers["result"][2]
    assert "Hello" in answers["openai"][2]


# The status and the text that a page can read, or the error when the browser lets it read nothing.
ASK = """async ([url, headers]) => {
    try {
        const answer = await fetch(url, { headers });
        return [answer.status, await answer.text()];
    } catch (error) {
        return [0, String(error)];
    }
}"""


def test_a_server_without_keys_answers_the_pages_that_it_is_to_answer(
    visit: Callable[..., Visit], page_server: RunningServer, models_dir: Path, base_model_dir: Path, tmp_path: Path
) -> None:
    tab = visit(page_server)
    page = tab.page
    page.goto(f"http://localhost:{page_server.port}/livez")
    for allowed, statuses in (("", [403, 0]), (page.evaluate("origin"), [200, 200])):
        changes = {"ENABLE_AUTHORIZATION": False, "ALLOWED_ORIGINS": allowed, "PRELOAD_MODELS": False}
        directory = tmp_path / str(len(allowed))
        with RunningServer(directory, models_dir, changes, arguments=("--insecure",)) as server:
            # A browser sends a preflight before the second request.
            answers = [
                page.evaluate(ASK, [f"{server.url}/status", headers]) for headers in ({}, {"Idempotency-Key": "once"})
            ]
        assert [status for status, _ in answers] == statuses
        if not allowed:
            assert "ALLOWED_ORIGINS" in answers[0][1]
            assert "ALLOWED_ORIGINS" in server.log
            # The browser's own error after a refused preflight.
            (complaint,) = tab.complaints
            assert "blocked by CORS policy" in complaint
            tab.complaints.clear()
