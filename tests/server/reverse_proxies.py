"""The real nginx and Caddy in front of a server, with the configuration in deploy/."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from server.harness import PATIENCE_SECONDS, free_port

__all__ = ["PREFIX", "PROXIES", "authority_of", "reverse_proxy"]

DEPLOY = Path(__file__).parents[2] / "deploy"
# Name to the configuration that is shipped, and what a test replaces in it besides the address of the server.
SHIPPED = {
    "nginx": (DEPLOY / "nginx" / "whisper-api.conf", "listen 80;", "listen 127.0.0.1:{port};"),
    "caddy": (
        DEPLOY / "caddy" / "Caddyfile",
        "whisper.example {",
        "127.0.0.1:{port} {{\n\tbind 127.0.0.1\n\ttls server.pem server.pem",
    ),
}
# Caddy asks no authority of the internet here: the test makes the certificate.
SCHEMES = {"nginx": "http", "caddy": "https"}
PROXIES = tuple(SHIPPED)
PREFIX = "/whisper"
ADDRESS = "127.0.0.1:8181"
# What surrounds the shipped files: no privileges, no other files than those of the test.
FRAMES = {
    "nginx": """
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {shipped}
}}
""",
    "caddy": """
{{
    admin off
    auto_https disable_redirects
    storage file_system {directory}/caddy
}}
{shipped}
""",
}


@contextlib.contextmanager
def reverse_proxy(
    name: str, server_port: int, directory: Path, change: Callable[[str], str] = lambda example: example
) -> Iterator[str]:
    """A proxy that runs while this is open; the test is skipped where it is not installed.

    Args:
        name: one of :data:`PROXIES`.
        server_port: of the server on this machine.
        directory: for its files.
        change: makes another set-up of that of the document.

    Yields:
        The server's address through it, without a slash at the end.
    """
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if program is None:
        pytest.skip(f"{name} is not installed: apt-get install {name}")
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    shipped, listens, listens_here = SHIPPED[name]
    text = change(shipped.read_text(encoding="utf-8"))
    for old, new in ((ADDRESS, f"127.0.0.1:{server_port}"), (listens, listens_here.format(port=port))):
        assert text.count(old) == 1, f"{shipped}: {old}"
        text = text.replace(old, new)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(authority_of(directory))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(directory / "server.pem")
    file = directory / f"{name}.conf"
    file.write_text(FRAMES[name].format(directory=directory, shipped=text), encoding="utf-8")
    arguments = (
        ["-p", str(directory), "-c", str(file)]
        if name == "nginx"
        else ["run", "--adapter", "caddyfile", "--config", str(file)]
    )
    with (directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen([program, *arguments], cwd=directory, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_for(port, process, directory / f"{name}.log")
            yield f"{SCHEMES[name]}://127.0.0.1:{port}{PREFIX}"
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)


def authority_of(directory: Path) -> Path:
    """The certificate of the authority that clients of a proxy with this directory trust."""
    return directory / "authority.pem"


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
