#!/usr/bin/env python3
"""Run other projects' clients of OpenAI's API against this server: each one's usual call, with its usual model names.

The clients are installed in the versions below, from the package indexes that pip and npm are set up for, into a
temporary directory. The server runs with the model base. Each call must return the transcript. Prints a table;
the exit code is 0 when every call gave the transcript, else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from free_ports import free_port

CALLS = Path(__file__).parent / "client_calls"


@dataclass(frozen=True)
class Client:
    """A client of another project.

    Attributes:
        name: what it is called here.
        packages: exact versions, as pip or npm names them.
        file: what makes its calls, in the folder of calls.
        proxy: whether its calls go through a LiteLLM proxy.
    """

    name: str
    packages: tuple[str, ...]
    file: str
    proxy: bool = False

    @property
    def is_node(self) -> bool:
        """The client runs on Node and is installed from npm."""
        return self.file.endswith(".mjs")


# The versions of all clients. Those for Node run on Node 20.
OPENAI = "openai==3.57.0"
CLIENTS = (
    Client("openai-python", (OPENAI,), "openai_python.py"),
    Client("openai-node", ("openai@6.49.0",), "openai_node.mjs"),
    Client("vercel-ai", ("ai@6.0.326", "@ai-sdk/openai@3.0.141"), "vercel_ai.mjs"),
    Client(
        "langchain",
        (
            "langchain-community==0.4.2",
            OPENAI,
            "pydub==0.25.1",
            "imageio-ffmpeg==0.6.0",
            "audioop-lts==0.2.2; python_version >= '3.13'",
        ),
        "langchain_whisper.py",
    ),
    Client("litellm", ("litellm[proxy]==1.108.7", OPENAI), "litellm_library.py"),
    Client("litellm-proxy", ("litellm[proxy]==1.108.7", OPENAI), "litellm_proxy.py", proxy=True),
)

# Eight seconds of the sample call in which two people speak, and a word that every model recognises in them.
CLIP_BEGIN, CLIP_SECONDS = 16, 8
WORD = "Chicago"
CALL_SECONDS = 600.0
PROXY_START_SECONDS = 300.0
PROXY_KEY = "sk-of-the-proxy"


@dataclass(frozen=True)
class Row:
    """The outcome of a call.

    Attributes:
        client, call: which.
        outcome: ``ok``, ``FAILED`` or ``skipped``.
        seconds: that all calls of the client took.
        text: the transcript, or what went wrong.
    """

    client: str
    call: str
    outcome: str
    seconds: float
    text: str


class CannotInstall(Exception):
    """A client's packages cannot be installed here."""


class Environment:
    """The directory in which clients are installed and run.

    Args:
        directory: a virtual environment and a Node project are made in it when they are needed.
        installed: whether the packages of this Python are used as they are.
    """

    def __init__(self, directory: Path, *, installed: bool) -> None:
        self._directory = directory
        self._installed = installed

    @property
    def python(self) -> Path:
        """The interpreter of the clients in Python."""
        return Path(sys.executable) if self._installed else self._directory / "venv" / "bin" / "python"

    def install(self, client: Client) -> None:
        """Install a client's packages.

        Raises:
            CannotInstall: says why.
        """
        if client.is_node:
            node = self._directory / "node"
            node.mkdir(exist_ok=True)
            if shutil.which("npm") is None:
                raise CannotInstall("there is no npm on this machine")
            shutil.copy(CALLS / client.file, node)
            _install(["npm", "install", "--no-audit", "--no-fund", "--save-exact", *client.packages], node)
        elif not self._installed:
            if not self.python.exists():
                _install([sys.executable, "-m", "venv", str(self._directory / "venv")], self._directory)
            pip = [str(self.python), "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
            _install([*pip, *client.packages], self._directory)

    def command(self, client: Client) -> list[str]:
        """The command that runs a client's calls."""
        if client.is_node:
            return ["node", str(self._directory / "node" / client.file)]
        return [str(self.python), str(CALLS / client.file)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the clients that the command line names.

    Returns:
        0 when each call gave the transcript, else 1.
    """
    options = _options(arguments)
    chosen = [client for client in CLIENTS if client.name in options.only and client.name not in options.skip]
    with tempfile.TemporaryDirectory(prefix="clients-") as folder:
        directory = Path(folder)
        environment = Environment(directory, installed=options.installed)
        with _server(directory) as served:
            rows = [row for client in chosen for row in _tried(client, environment, served, options.skip_uninstallable)]
    rows += [Row(client.name, "", "skipped", 0.0, "by --skip") for client in CLIENTS if client.name in options.skip]
    print(table(rows))
    return 1 if any(row.outcome == "FAILED" for row in rows) else 0


def judged(client: str, output: str, code: int, seconds: float) -> list[Row]:
    """The outcomes of a client's calls.

    Args:
        client: its name.
        output: what it has printed; a call is a line of JSON.
        code: its exit code.
        seconds: that it took.
    """
    lines = output.splitlines()
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            told = json.loads(line)
            call, text = str(told["call"]), str(told["text"])
            rows.append(Row(client, call, "ok" if WORD in text else "FAILED", seconds, text))
    if code != 0 or not rows:
        rows.append(Row(client, "", "FAILED", seconds, f"exit code {code}: {' | '.join(lines[-8:])}"))
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows, a line each; errors are printed in full."""
    cells = [("client", "call", "outcome", "s", "text")]
    for row in rows:
        text = row.text if row.outcome != "ok" or len(row.text) <= 60 else f"{row.text[:60]}..."
        cells.append((row.client, row.call, row.outcome, f"{row.seconds:.1f}", text))
    widths = [max(map(len, column)) for column in list(zip(*cells, strict=True))[:-1]]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]) for line in cells
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [client.name for client in CLIENTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CLIENT", help=", ".join(names))
    parser.add_argument("--skip", nargs="+", choices=names, default=[], metavar="CLIENT", help="named as skipped")
    parser.add_argument("--installed", action="store_true", help="use the packages of this Python, install none of its")
    parser.add_argument(
        "--skip-uninstallable", action="store_true", help="skip clients that cannot be installed, instead of failing"
    )
    return parser.parse_args(arguments)


def _tried(client: Client, environment: Environment, served: Mapping[str, str], may_skip: bool) -> list[Row]:
    print(f"{client.name}: {', '.join(client.packages)}", file=sys.stderr, flush=True)
    try:
        environment.install(client)
    except CannotInstall as error:
        return [Row(client.name, "", "skipped" if may_skip else "FAILED", 0.0, f"not installed: {error}")]
    with contextlib.ExitStack() as stack:
        env = {**_clean_environment(), **served}
        if client.proxy:
            env["PROXY_URL"] = stack.enter_context(_litellm_proxy(environment, served))
            env["PROXY_KEY"] = PROXY_KEY
        begun = time.perf_counter()
        done = subprocess.run(
            environment.command(client),
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=CALL_SECONDS,
            check=False,
        )
        return judged(client.name, done.stdout, done.returncode, time.perf_counter() - begun)


@contextlib.contextmanager
def _server(directory: Path) -> Iterator[dict[str, str]]:
    """A server with its files in a directory; yields the environment variables of its clients."""
    from whisper_api import Config, Server
    from whisper_api.engine.models.store import ModelStore

    flags = {
        "WHISPER_API_PORT": 0,
        "WHISPER_API_HOST": "127.0.0.1",
        "WHISPER_DATA_DIR": str(directory / "data"),
        "WHISPER_TMP_FILES": str(directory / "uploads"),
        "WHISPER_MODEL": "base",
        "WHISPER_LANGUAGE": "auto",
        "ENABLE_AUTHORIZATION": True,
        "WHISPER_MODELS_DIR": os.environ.get("WHISPER_MODELS_DIR") or str(CALLS.parents[1] / "models_cache"),
    }
    config = Config.load(flags=flags).config
    for model in ("base", "segmentation-3.0", "campplus"):
        ModelStore(config.models_dir).ensure(model)
    server = Server(config)
    with server as url:
        assert server.api_key is not None
        yield {"SERVER_URL": url, "SERVER_KEY": server.api_key, "AUDIO_FILE": str(_clip(directory))}


@contextlib.contextmanager
def _litellm_proxy(environment: Environment, served: Mapping[str, str]) -> Iterator[str]:
    """LiteLLM's proxy in front of the server; yields its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    parameters = {"model": "openai/*", "api_base": f"{served['SERVER_URL']}/v1", "api_key": served["SERVER_KEY"]}
    config: dict[str, Any] = {
        "model_list": [{"model_name": "*", "litellm_params": parameters}],
        "general_settings": {"master_key": PROXY_KEY},
    }
    file = Path(served["AUDIO_FILE"]).with_name("litellm.yaml")
    # YAML includes JSON.
    file.write_text(json.dumps(config))
    # The proxy passes requests on to these addresses.
    env = {"OPENAI_API_BASE": served["SERVER_URL"], "OPENAI_API_KEY": served["SERVER_KEY"]}
    program = str(environment.python.with_name("litellm"))
    with (
        file.with_name("litellm.log").open("w+b") as log,
        subprocess.Popen(
            [program, "--config", str(file), "--host", "127.0.0.1", "--port", str(port)],
            env={**_clean_environment(), **env},
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            deadline = time.monotonic() + PROXY_START_SECONDS
            while not _answers(f"{url}/health/liveliness"):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"the LiteLLM proxy does not start: {log.read()[-3000:].decode(errors='replace')}")
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _clip(directory: Path) -> Path:
    import importlib.util

    spec = importlib.util.find_spec("pyannote.audio")
    assert spec is not None
    assert spec.submodule_search_locations
    call = Path(next(iter(spec.submodule_search_locations))) / "sample" / "sample.wav"
    clip = directory / "clip.wav"
    with wave.open(str(call)) as whole, wave.open(str(clip), "wb") as part:
        part.setparams(whole.getparams())
        whole.setpos(CLIP_BEGIN * whole.getframerate())
        part.writeframes(whole.readframes(CLIP_SECONDS * whole.getframerate()))
    return clip


def _clean_environment() -> dict[str, str]:
    """This process's environment without variables that would direct a client to another server."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OPENAI_", "AZURE_", "LITELLM_", "WHISPER_")) and name != "PYTHONPATH"
    }
    # The first variable keeps LiteLLM from fetching a price list.
    return {**kept, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def _install(command: list[str], directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotInstall(f"{' '.join(command[:4])} ... ended with {done.returncode}: {done.stderr.strip()[-1000:]}")


if __name__ == "__main__":
    sys.exit(main())
