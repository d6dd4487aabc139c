"""The meaning of model names: aliases, OpenAI's names, repositories."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from whisper_api.config import Config
from whisper_api.engine.models.catalog import ALIASES, CATALOGUE
from whisper_api.engine.models.files import model_facts
from whisper_api.engine.models.names import (
    AUTO,
    OPENAI_NAMES,
    ModelNames,
    asks_for_speakers,
    catalogue_name,
    is_openai_name,
    near_names,
    parse_aliases,
)
from whisper_api.engine.models.store import ModelStore
from whisper_api.errors import ConfigError, UnknownModel

WHISPER = [entry for entry in CATALOGUE.values() if entry.kind == "whisper"]
SIZES = [entry.name for entry in WHISPER if not entry.name.startswith("distil-")]


@pytest.mark.parametrize("entry", WHISPER, ids=lambda entry: entry.name)
def test_every_repository_of_the_catalogue_is_its_model(entry: object) -> None:
    from whisper_api.engine.models.entry import Entry

    assert isinstance(entry, Entry)
    assert entry.hub is not None
    for name in (entry.name, entry.hub.repo_id, entry.hub.repo_id.lower(), *entry.aliases):
        assert catalogue_name(name) == entry.name
        assert model_facts(name) is entry


@pytest.mark.parametrize("size", [*SIZES, *ALIASES])
def test_every_size_is_known_by_its_usual_names(size: str) -> None:
    model = ALIASES.get(size, size)
    for name in (
        f"openai/whisper-{size}",
        f"whisper-{size}",
        f"Whisper-{size.title()}",
        f"Systran/faster-whisper-{size}",
        f"guillaumekln/faster-whisper-{size}",
        f"faster-whisper-{size}",
    ):
        assert catalogue_name(name) == model, name


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("distil-whisper/distil-large-v3", "distil-large-v3"),
        ("distil-whisper/distil-large-v3-ct2", "distil-large-v3"),
        ("distil-whisper-large-v3-en", "distil-large-v3"),
        ("deepdml/faster-whisper-large-v3-turbo-ct2", "large-v3-turbo"),
        ("dropbox-dash/faster-whisper-large-v3-turbo", "large-v3-turbo"),
        ("whisper-v3", "large-v3"),
    ],
)
def test_names_of_the_same_weights_elsewhere_mean_the_same_model(name: str, model: str) -> None:
    assert catalogue_name(name) == model


@pytest.mark.parametrize("name", ["", "gpt-4o", "somebody/whisper-base", "Base", "../base", "whisper-", "openai/base"])
def test_other_names_are_not_in_the_catalogue(name: str) -> None:
    assert catalogue_name(name) is None


def test_no_name_means_two_things() -> None:
    for name in (*CATALOGUE, *ALIASES):
        assert not is_openai_name(name)
        # A name that a rule makes must not take a name that the catalogue has.
        assert catalogue_name(name) == ALIASES.get(name, name)
    for name in OPENAI_NAMES:
        assert catalogue_name(name) is None


@pytest.mark.parametrize(
    "name",
    [
        *OPENAI_NAMES,
        *(f"openai/{name}" for name in OPENAI_NAMES),
        "gpt-4o-mini-transcribe-2025-12-15",
        "gpt-4o-transcribe-latest",
        "gpt-5.2-mini-transcribe",
        "whisper",
        "Whisper-1",
    ],
)
def test_openai_s_names_mean_the_configured_model(name: str) -> None:
    assert ModelNames("small").meaning(name) == "small"
    assert ModelNames(AUTO).meaning(name) == AUTO
    # As the configured model, it is the engine's own choice.
    assert ModelNames(name).configured == AUTO
    assert asks_for_speakers(name) is ("diarize" in name)


def test_all_audio_models_of_openai_s_package_are_known() -> None:
    from typing import get_args

    from openai.types import AudioModel

    assert all(map(is_openai_name, get_args(AudioModel)))


@pytest.mark.parametrize("name", ["gpt-4o", "gpt-4o-mini-tts", "tts-1", "whisper-2", "transcribe", "gpt--transcribe"])
def test_other_names_are_no_transcription_models_of_openai(name: str) -> None:
    assert not is_openai_name(name)


def test_aliases_win_over_every_other_meaning() -> None:
    names = ModelNames.of("base", "my-asr=whisper-small, scribe = /srv/models/own ,whisper-1=tiny,base=turbo, x=auto")
    meanings = {name: names.meaning(name) for name in ("my-asr", "MY-ASR", "scribe", "whisper-1", "base", "x")}
    assert meanings == {
        "my-asr": "small",
        "MY-ASR": "small",
        "scribe": "/srv/models/own",
        "whisper-1": "tiny",
        "base": "large-v3-turbo",
        # The configured model is named as anybody names it.
        "x": "large-v3-turbo",
    }
    assert names.aliases == ("my-asr", "scribe", "whisper-1", "base", "x")
    assert names.meaning("gpt-4o-transcribe") == names.meaning(None) == "large-v3-turbo"


def test_only_models_that_the_configuration_names_are_trusted() -> None:
    names = ModelNames.of("organisation/own", "scribe=/srv/models/own")
    assert all(names.trusts(names.meaning(name)) for name in (None, "auto", "whisper-1", "scribe", "organisation/own"))
    assert names.trusts("/srv/models/own")
    assert not any(names.trusts(names.meaning(name)) for name in ("/etc", "organisation/other", "base"))


@pytest.mark.parametrize("text", ["base", "a=", "=base", "a=b=c", "a=b c=d", "a b=c", ",", "a=b,,c=d"])
def test_aliases_that_cannot_be_read_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"MODEL_ALIASES: .* expected text such as my-asr=base, scribe=large-v3"):
        Config.load(env={"MODEL_ALIASES": text})


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("a=b", {"a": "b"}),
        (" a = b , c=d,", {"a": "b", "c": "d"}),
        ("a=/srv/my models/own", {"a": "/srv/my models/own"}),
        ("A/b-c.1=organisation/name", {"A/b-c.1": "organisation/name"}),
    ],
)
def test_aliases_are_read_from_the_configuration(text: str, pairs: dict[str, str]) -> None:
    config = Config.load(env={"MODEL_ALIASES": text}).config
    assert parse_aliases(config.model_aliases) == pairs
    assert parse_aliases(None) == {}


def test_a_suggestion_names_each_name_once(tmp_path: Path) -> None:
    assert near_names("bas", ["base", "base.en", "base"]) == "base or base.en"
    assert near_names("zzz", ["base"]) == ""
    for name in ("bas", "large-v", "bse", "distil-large"):
        with pytest.raises(UnknownModel) as caught:
            ModelStore(tmp_path).ensure(name)
        suggested = re.findall(r"mean (.*)\?", str(caught.value))[0].split(" or ")
        assert len(suggested) == len(set(suggested)) > 1
