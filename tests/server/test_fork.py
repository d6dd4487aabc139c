"""A server, a service or a client that is taken over a fork works in the child or says at once that it does not."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

from test_fork import pytestmark, run

__all__ = ["pytestmark"]

CONFIG = """
from pathlib import Path
from whisper_api import Client, Config, Server, create_app
root = Path(sys.argv[1])
config = Config(
    data_dir=root / "data", tmp_dir=root / "uploads", port=0, preload_models=False, enable_authorization=False
)
end = sys.exit
"""

# A server that returns the port of the client's connection as the id of the job.
PORTS = """
import http.server, json

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = json.dumps({"job_id": str(self.client_address[1]), "status": "Queued", "created_at": ""}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *ignored):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
"""


def test_an_application_that_was_made_before_the_fork_serves_in_the_child(tmp_path: Path) -> None:
    script = """
from starlette.testclient import TestClient
app = create_app(config)

def serve():
    with TestClient(app, base_url="http://127.0.0.1") as client:
        return client.get("/livez").status_code

child("first", serve, end)
child("second", serve, end)
print("parent", serve())
"""
    told = run(CONFIG + script, tmp_path)
    assert told == {"first": "200", "first end": "3", "second": "200", "second end": "3", "parent": "200"}


def test_a_service_that_was_opened_before_the_fork_says_at_once_that_it_cannot_be_used(tmp_path: Path) -> None:
    script = """
from starlette.testclient import TestClient
from whisper_api.jobs.service import JobService
service = JobService.open(config)
app = create_app(config, service=service)

def serve():
    with TestClient(app, base_url="http://127.0.0.1") as client:
        return client.get("/livez").status_code

child("start", service.start, end)
service.start()
child("serve", serve, end)
child("status", lambda: service.status("nothing", None), end)
child("reserve", lambda: service.reserve(""), end)
child("stop", lambda: service.stop(0), end)
child("close", service.close, end)
print("parent", serve(), service.counts())
service.close()
"""
    told = run(CONFIG + script, tmp_path)
    assert {text for name, text in told.items() if name.endswith(" end")} == {"3"}
    for name in ("start", "serve", "status", "reserve", "stop"):
        assert told[name].startswith("ForkedProcess the job database was opened in process "), told[name]
    assert told["close"] == "None"
    assert told["parent"] == "200 (0, 0)"


def test_a_server_goes_on_when_a_forked_process_leaves_its_block(tmp_path: Path) -> None:
    script = """
import urllib.request

def status(url):
    with urllib.request.urlopen(url + "/livez", timeout=60) as answer:
        return answer.status

unstarted = Server(config)
server = Server(config)
with server as url:
    child("url", lambda: status(server.url), end)
    child("close", server.close, end)
    child("start", server.start, end)
    print("parent", status(url))

def whole():
    with unstarted as url:
        return status(url)

child("whole", whole, end)
print("again", whole())
"""
    told = run(CONFIG + script, tmp_path)
    assert {text for name, text in told.items() if name.endswith(" end")} == {"3"}
    assert told["url"] == told["parent"] == told["whole"] == told["again"] == "200"
    assert told["close"] == "None"
    assert told["start"].startswith("ForkedProcess this server runs in process ")


def test_a_client_does_not_share_its_connections_with_a_forked_process(tmp_path: Path) -> None:
    script = (
        PORTS
        + """
import requests
for name, session in (("own", None), ("given", requests.Session())):
    client = Client(url, session=session)
    def port():
        return client.status("job").job_id  # the port that the connection comes from
    print(f"{name}-before", port())
    child(f"{name}-child", port, end)
    print(f"{name}-after", port())
"""
    )
    told = run(CONFIG + script, tmp_path)
    for name in ("own", "given"):
        assert told[f"{name}-child end"] == "3"
        assert told[f"{name}-before"] == told[f"{name}-after"]
        assert told[f"{name}-child"].isdecimal()
        assert told[f"{name}-child"] != told[f"{name}-before"]


def test_an_async_client_does_not_share_its_connections_with_a_forked_process(tmp_path: Path) -> None:
    script = (
        PORTS
        + """
import asyncio, httpx
from whisper_api import AsyncClient

for name, session in (("own", None), ("given", httpx.AsyncClient()), ("fresh", httpx.AsyncClient())):
    client = AsyncClient(url, session=session)
    async def port():
        return (await client.status("job")).job_id
    loop = asyncio.new_event_loop()
    if name != "fresh":
        print(f"{name}-before", loop.run_until_complete(port()))
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            print(f"{name}-child", asyncio.new_event_loop().run_until_complete(port()), flush=True)
        except BaseException as error:
            print(f"{name}-child", type(error).__name__, error, flush=True)
        os._exit(3)
    _, status = os.waitpid(pid, 0)
    print(f"{name}-child ended with", os.waitstatus_to_exitcode(status), flush=True)
    print(f"{name}-after", loop.run_until_complete(port()))
"""
    )
    told = run(CONFIG + script, tmp_path)
    assert {text for name, text in told.items() if name.endswith(" end")} == {"3"}
    for name in ("own", "given"):
        assert told[f"{name}-before"] == told[f"{name}-after"]
    assert told["own-child"].isdecimal()
    assert told["own-child"] != told["own-before"]
    assert told["given-child"].startswith("ForkedProcess the httpx.AsyncClient given as session was used in process ")
    assert told["fresh-child"].isdecimal()
    assert told["fresh-after"].isdecimal()
