"""Behind a reverse proxy: which address clients use, and who they are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import config_in
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.routing import Mount
from starlette.types import Message, Scope

from server.inside import AUDIO, ORIGIN, Inside, inside, on_a_loop, problem
from whisper_api import create_app
from whisper_api.errors import ConfigError
from whisper_api.server.app import ROUTES
from whisper_api.server.middleware.proxies import BehindProxy, TrustedAddresses, client_address, public_url
from whisper_api.testing import FakeExecutor

PROXY, STRANGER = "10.0.0.1", "198.51.100.7"
CLIENT = "203.0.113.9"


def seen(headers: dict[str, str], *, peer: str = PROXY, path: str = "/docs", **settings: Any) -> Request:
    """The request as the application sees it."""
    settings = {"trusted_proxies": "10.0.0.0/8, ::1", **settings}
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: object, send: object) -> None:
        scopes.append(scope)

    async def silent() -> Message:
        raise AssertionError

    async def ignore(message: Message) -> None:
        pass

    scope: Scope = {
        **{"type": "http", "method": "GET", "scheme": "http", "path": path, "root_path": "", "query_string": b""},
        **{"client": (peer, 4711), "headers": Headers({"host": "127.0.0.1:8181", **headers}).raw},
    }
    asyncio.run(BehindProxy(app, config=config_in(Path(), **settings))(scope, silent, ignore))
    return Request(scopes[0] if scopes else scope)


def client_of(headers: dict[str, str], **settings: Any) -> str | None:
    return client_address(seen(headers, **settings).scope)


# --- repeated slashes ---


@on_a_loop
async def test_repeated_slashes_in_an_address_count_as_one(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app, app.client(app.token("ann")) as client:
        answer = await client.post(f"{ORIGIN}//asr", files={"audio_file": ("a.wav", AUDIO)})
        assert (answer.status_code, answer.request.url.path) == (200, "//asr")
        for path, resource in ROUTES.items():
            for method in ("OPTIONS", *resource.operations):
                addresses = (f"{ORIGIN}{path}", f"{ORIGIN}{path.replace('/', '//')}", f"{ORIGIN}//{path}")
                answers = [await client.request(method, address) for address in addresses]
                assert len({(answer.status_code, answer.headers.get("allow")) for answer in answers}) == 1, (
                    method,
                    path,
                )


@on_a_loop
async def test_repeated_slashes_open_nothing(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app, app.client() as client:
        problem(await client.post(f"{ORIGIN}//transcribe"), 401, "unauthorized")
        problem(await client.get(f"{ORIGIN}//assets//..//status"), 404, "not_found")
        assert (await client.get(f"{ORIGIN}//livez")).status_code == 200


def test_repeated_slashes_do_not_hide_the_prefix() -> None:
    request = seen({"x-forwarded-prefix": "/whisper"}, path="//whisper//docs")
    assert (request.scope["root_path"], request.scope["path"]) == ("/whisper", "/whisper/docs")


# --- trusted addresses ---


def test_a_trusted_proxy_is_believed() -> None:
    headers = {
        "x-forwarded-for": CLIENT,
        "x-forwarded-proto": "https",
        "x-forwarded-host": "speech.example:444",
        "x-forwarded-prefix": "/whisper/",
    }
    request = seen(headers)
    assert client_address(request.scope) == CLIENT
    assert public_url(request) == "https://speech.example:444/whisper"


@given(
    st.dictionaries(
        st.sampled_from(
            ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-prefix", "forwarded")
        ),
        st.sampled_from((CLIENT, "https", "evil.example", "/evil", "for=1.2.3.4;proto=https;host=evil.example")),
    )
)
def test_headers_of_untrusted_peers_are_ignored(headers: dict[str, str]) -> None:
    for settings in ({"peer": STRANGER}, {"trusted_proxies": None}, {"trusted_proxies": ""}):
        request = seen(headers, **settings)
        assert client_address(request.scope) == settings.get("peer", PROXY)
        assert public_url(request) == "http://127.0.0.1:8181"
        assert request.scope["root_path"] == ""


@pytest.mark.parametrize(
    ("told", "client"),
    [
        # Entries before the nearest untrusted address may be invented.
        (f"1.1.1.1, {CLIENT}", CLIENT),
        (f"1.1.1.1, {CLIENT}, 10.1.2.3, ::1", CLIENT),
        (f"{CLIENT}:1234", CLIENT),
        ("[2001:db8::5]:99", "2001:db8::5"),
        ("2001:DB8::5", "2001:db8::5"),
        ("10.9.9.9, 10.8.8.8", "10.9.9.9"),
        (f"{CLIENT}, unknown", PROXY),
        ("1.2.3.4.5", PROXY),
        ("x" * 5000, PROXY),
        (",,", PROXY),
    ],
)
def test_the_client_is_the_nearest_address_that_is_no_proxy(told: str, client: str) -> None:
    assert client_of({"x-forwarded-for": told}) == client


def test_an_ipv4_address_in_an_ipv6_socket_is_the_same() -> None:
    assert client_of({"x-forwarded-for": CLIENT}, peer=f"::ffff:{PROXY}") == CLIENT


def test_the_forwarded_header_counts_when_no_other_header_does() -> None:
    told = {"forwarded": 'for=1.1.1.1, for="[2001:db8::5]:80";proto=HTTPS;host="speech.example"'}
    request = seen(told)
    assert client_address(request.scope) == "2001:db8::5"
    assert public_url(request) == "https://speech.example"
    assert client_of({**told, "x-forwarded-for": CLIENT}) == CLIENT
    assert public_url(seen({**told, "x-forwarded-for": CLIENT})) == "http://127.0.0.1:8181"


@pytest.mark.parametrize(
    "headers",
    [
        {"x-forwarded-proto": "javascript"},
        {"x-forwarded-host": "evil.example/path"},
        {"x-forwarded-host": "a b"},
        {"x-forwarded-host": "user@evil.example"},
        {"x-forwarded-prefix": "//evil.example"},
        {"x-forwarded-prefix": "/../admin"},
        {"x-forwarded-prefix": "/a'b"},
        {"x-forwarded-prefix": "no-slash"},
        {"x-forwarded-prefix": "/" + "a" * 300},
        {"forwarded": ';;;=,=",for=_hidden'},
    ],
)
def test_invalid_proxy_headers_are_ignored(headers: dict[str, str]) -> None:
    request = seen(headers)
    assert public_url(request) == "http://127.0.0.1:8181"
    assert client_address(request.scope) == PROXY


@given(st.sampled_from(("x-forwarded-for", "x-forwarded-host", "x-forwarded-prefix", "forwarded")), st.binary())
def test_no_header_breaks_it(name: str, value: bytes) -> None:
    request = seen({name: value.decode("latin-1")})
    assert "\n" not in public_url(request)


def test_settings_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    for trusted in ("nginx", "10.0.0.0/33", "*", "127.0.0.1;::1"):
        with pytest.raises(ConfigError, match="WHISPER_TRUSTED_PROXIES"):
            create_app(config_in(tmp_path, trusted_proxies=trusted))
    for prefix in ("whisper", "//x", "/a b", "/..", "http://x/y", "/x?y"):
        with pytest.raises(ConfigError, match="WHISPER_ROOT_PATH"):
            create_app(config_in(tmp_path, root_path=prefix))
    assert PROXY in TrustedAddresses(" 10.0.0.1/8 ,")
    assert STRANGER not in TrustedAddresses("10.0.0.0/8")


# --- under a prefix ---


@contextlib.asynccontextmanager
async def under_prefix(
    directory: Path, *, strips: bool, **settings: Any
) -> AsyncIterator[tuple[Inside, httpx.AsyncClient]]:
    """An application behind a proxy at ``/a/whisper``, which may remove the prefix from paths."""
    async with inside(directory, FakeExecutor(), root_path="/a/whisper", **settings) as app:

        async def proxy(scope: Scope, receive: Any, send: Any) -> None:
            path = scope["path"]
            assert path.startswith("/a/whisper")
            await app.app({**scope, "path": path.removeprefix("/a/whisper") or "/" if strips else path}, receive, send)

        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(proxy), base_url="http://127.0.0.1/a/whisper"
        ) as client:
            yield app, client


@on_a_loop
async def test_everything_is_found_under_a_prefix(tmp_path: Path) -> None:
    for strips in (True, False):
        async with under_prefix(tmp_path / str(strips), strips=strips) as (_, client):
            answer = await client.post("/transcribe", files={"file": ("a.wav", AUDIO)})
            assert answer.status_code == 202, answer.text
            job = answer.json()
            # The client's own address, and what it is told; and from the root of the host.
            assert (await client.get(f"{client.base_url}{job['status_url'][1:]}")).status_code == 200
            assert answer.headers["Location"] == f"/a/whisper{job['status_url']}"
            assert (await client.get(f"http://127.0.0.1{answer.headers['Location']}")).status_code == 200
            several = await client.post("/transcriptions", files=[("file", ("a.wav", AUDIO))])
            url = several.json()["jobs"][0]["status_url"]
            assert (await client.get(url)).status_code == 200
            assert (await client.get("/openapi.json")).json()["servers"] == [{"url": "/a/whisper"}]
            assert "URL=http://127.0.0.1/a/whisper\n" in (await client.get("/docs")).text
            assert (await client.get("/assets/docs.css")).status_code == 200
            assert (await client.get("/")).status_code == 200
            assert (await client.get("/assets/app.js")).status_code == 200
            assert "error" in (await client.post("/v1/audio/transcriptions")).json()


@on_a_loop
async def test_the_page_is_found_without_the_slash_at_its_end(tmp_path: Path) -> None:
    async with under_prefix(tmp_path, strips=False) as (_, client):
        answer = await client.get("http://127.0.0.1/a/whisper")
        assert (answer.status_code, answer.headers["Location"]) == (308, "/a/whisper/")
        assert answer.headers["X-Request-ID"]


@on_a_loop
async def test_keys_are_asked_for_under_a_prefix_and_open_paths_are_open(tmp_path: Path) -> None:
    for strips in (True, False):
        async with under_prefix(tmp_path / str(strips), strips=strips, enable_authorization=True) as (app, client):
            statuses = {path: (await client.get(path)).status_code for path in ("/", "/livez", "/docs", "/status")}
            assert statuses == {"/": 200, "/livez": 200, "/docs": 200, "/status": 401}
            client.auth = ("bazarr", app.token("bazarr"))
            assert (await client.post("/asr", files={"audio_file": ("a.wav", AUDIO)})).status_code == 200


@on_a_loop
async def test_a_prefix_in_front_of_a_mounted_application(tmp_path: Path) -> None:
    for prefix, location in (("/outer", "/outer/speech/transcription/"), ("/speech", "/speech/transcription/")):
        async with inside(tmp_path / prefix[1:], root_path=prefix) as app:
            mounted = Starlette(routes=[Mount("/speech", app.app)])
            async with httpx.AsyncClient(transport=httpx.ASGITransport(mounted), base_url="http://127.0.0.1") as client:
                answer = await client.post("/speech/transcribe", files={"file": ("a.wav", AUDIO)})
                assert answer.status_code == 202, answer.text
                assert answer.headers["Location"].startswith(location)


# --- what follows from it ---


@on_a_loop
async def test_the_log_names_the_client_of_a_trusted_proxy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="whisper_api.access")
    for trusted, address in (("127.0.0.1", CLIENT), (None, "127.0.0.1")):
        async with inside(tmp_path / str(trusted), trusted_proxies=trusted) as app, app.client() as client:
            await client.get("/status", headers={"X-Forwarded-For": CLIENT})
        (record,) = [r for r in caplog.records if r.name == "whisper_api.access"]
        assert record.__dict__["client"] == address
        caplog.clear()


@on_a_loop
async def test_a_forwarded_host_lets_no_page_in(tmp_path: Path) -> None:
    """A DNS name that was rebound to this machine does not count as this machine, whatever headers its page adds."""
    async with inside(tmp_path, trusted_proxies="127.0.0.1") as app, app.client() as client:
        headers = {"Host": "rebound.example", "X-Forwarded-Host": "127.0.0.1", "X-Forwarded-Proto": "http"}
        assert (await client.get("/status", headers=headers)).status_code == 403
        headers = {"Origin": "https://evil.example", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"}
        assert (await client.get("/status", headers=headers)).status_code == 403
