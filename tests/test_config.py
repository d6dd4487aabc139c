"""The configuration: its sources, their order and their errors, and the documents that list its keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_api.coercion import convert, expected
from whisper_api.config import (
    RELOADABLE,
    ComputeType,
    Config,
    Loaded,
    OutputFormat,
    Setting,
    describe,
    format_value,
    settings,
)
from whisper_api.errors import ConfigError

ROOT = Path(__file__).parents[1]
TOKEN = "hf_notARealTokenButSecret"
SETTINGS = {setting.key: setting for setting in settings()}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory and directories of the user without a configuration."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))


def load(text: str | None = None, env: dict[str, str] | None = None, **flags: object) -> Loaded:
    if text is not None:
        Path("whisper_api.conf").write_text(text, encoding="utf-8")
    return Config.load(env=env or {}, flags=flags)


# --- which source wins ---


def test_each_source_wins_over_the_one_before() -> None:
    key = "WHISPER_MODEL"
    assert load().config.model == "auto"
    assert load(f'{key} = "tiny"').config.model == "tiny"
    assert load(env={key: "base"}).config.model == "base"
    assert load(env={key: "base"}, **{key: "small"}).config.model == "small"


def test_origins_say_where_each_value_came_from() -> None:
    loaded = load(
        '# a comment\n\nWHISPER_API_PORT = "9000"\n',
        env={"WHISPER_DEVICE": "cpu"},
        WHISPER_MODEL="tiny",
    )
    assert loaded.path == Path.cwd() / "whisper_api.conf"
    assert loaded.origins["WHISPER_API_PORT"] == f"{loaded.path}:3"
    assert loaded.origins["WHISPER_DEVICE"] == "environment variable WHISPER_DEVICE"
    assert loaded.origins["WHISPER_MODEL"] == "command line"
    assert loaded.origins["WHISPER_LANGUAGE"] == "default"
    assert set(loaded.origins) == set(SETTINGS)


def test_the_file_named_on_the_command_line_wins_over_the_variable_and_the_working_directory(tmp_path: Path) -> None:
    named, by_variable = tmp_path / "named.conf", tmp_path / "variable.conf"
    named.write_text('WHISPER_MODEL = "tiny"')
    by_variable.write_text('WHISPER_MODEL = "base"')
    Path("whisper_api.conf").write_text('WHISPER_MODEL = "small"')
    env = {"WHISPER_API_CONFIG": str(by_variable)}
    assert Config.load(named, env=env).config.model == "tiny"
    assert Config.load(env=env).config.model == "base"
    assert Config.load(env={}).config.model == "small"


def test_the_users_file_is_read_when_there_is_no_other(tmp_path: Path) -> None:
    users = tmp_path / "config" / "whisper-api" / "whisper_api.conf"
    users.parent.mkdir(parents=True)
    users.write_text('WHISPER_MODEL = "tiny"')
    assert load().config.model == "tiny"
    assert load('WHISPER_MODEL = "small"').config.model == "small"


@pytest.mark.parametrize("env", [{}, {"WHISPER_API_CONFIG": "missing.conf"}])
def test_a_named_file_that_is_missing_is_an_error(env: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"missing\.conf"):
        Config.load(None if env else "missing.conf", env=env)


def test_an_empty_value_is_not_set() -> None:
    loaded = load('WHISPER_MODEL = "tiny"\nWHISPER_LANGUAGE = ""\n', env={"WHISPER_MODEL": "", "WHISPER_DEVICE": " "})
    assert loaded.config.model == "tiny"
    assert loaded.config.language == "fr"
    assert loaded.config.device == "auto"


# --- paths ---


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "etc" / "my.conf"
    file.parent.mkdir()
    file.write_text('WHISPER_MODELS_DIR = "models"\nWHISPER_TMP_FILES = "/srv/uploads"\n')
    config = Config.load(file, env={"WHISPER_DATA_DIR": "data"}).config
    assert config.models_dir == file.parent / "models"
    assert config.tmp_dir == Path("/srv/uploads")
    assert config.data_dir == Path.cwd() / "data"
    assert config.hf_token_file == file.parent / "hf_token.txt"


def test_models_and_data_go_to_the_directories_of_the_user_when_there_is_no_file(tmp_path: Path) -> None:
    config = load().config
    assert config.models_dir == tmp_path / "cache" / "whisper-api" / "models_cache"
    assert config.data_dir == tmp_path / "data" / "whisper-api"
    assert config.data_dir in config.tmp_dir.parents
    assert load(env={"WHISPER_MODELS_DIR": "/srv/models"}).config.models_dir == Path("/srv/models")


def test_a_leading_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert load('WHISPER_MODELS_DIR = "~/models"').config.models_dir == tmp_path / "models"


# --- types ---


@pytest.mark.parametrize("port", ['"8282"', "8282", '" 8282 "'])
def test_a_number_may_be_written_as_text(port: str) -> None:
    assert load(f"WHISPER_API_PORT = {port}").config.port == 8282


@pytest.mark.parametrize(
    ("text", "value"),
    [(word, True) for word in ("true", "TRUE", "Yes", "on", "1")]
    + [(word, False) for word in ("false", "False", "NO", "off", "0")],
)
def test_booleans_in_every_usual_spelling(text: str, value: bool) -> None:
    assert load(env={"ENABLE_CONCURRENCY": text}).config.enable_concurrency is value
    assert load(f"PRELOAD_MODELS = {str(value).lower()}").config.preload_models is value


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("AUTO", "auto"), ("8", 8)])
def test_the_batch_size_is_a_number_or_auto(text: str, value: object) -> None:
    assert load(env={"WHISPER_BATCH_SIZE": text}).config.batch_size == value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("WHISPER_API_PORT", "65536"),
        ("WHISPER_API_PORT", "-1"),
        ("WHISPER_API_PORT", "http"),
        ("WHISPER_API_TIMEOUT", "0"),
        ("WHISPER_API_TIMEOUT", "inf"),
        ("WHISPER_API_TIMEOUT", "nan"),
        ("MAX_FILE_SIZE", "0"),
        ("MAX_FILE_SIZE", "512MB"),
        ("MAX_CONCURRENT_JOBS", "0"),
        ("MODEL_KEEP_ALIVE_SECONDS", "-2"),
        ("WHISPER_BATCH_SIZE", "0"),
        ("WHISPER_OUTPUT_FORMAT", "docx"),
        ("WHISPER_DEVICE", "tpu"),
        ("WHISPER_COMPUTE_TYPE", "float8"),
        ("ENABLE_AUTHORIZATION", "perhaps"),
        ("WHISPER_LOG_LEVEL", "loud"),
        ("WHISPER_LOG_FORMAT", "xml"),
    ],
)
def test_a_bad_value_is_refused_by_key_value_and_origin(key: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(env={key: value})
    message = str(caught.value)
    assert message.startswith(f"environment variable {key}: {key}: {value!r} ")
    assert expected(SETTINGS[key].type) in message
    with pytest.raises(ConfigError, match=r"whisper_api\.conf:2"):
        load(f'# the second line\n{key} = "{value}"\n')


def test_values_of_the_wrong_toml_type_are_refused() -> None:
    for line in ("WHISPER_API_PORT = true", "WHISPER_MODEL = 5", "WHISPER_MODELS_DIR = 1", "MAX_FILE_SIZE = [1]"):
        with pytest.raises(ConfigError, match=line.split()[0]):
            load(line)


@given(port=st.integers(0, 65535), spaces=st.sampled_from(["", " ", "\t"]))
def test_every_port_is_read_back(port: int, spaces: str) -> None:
    assert convert(f"{spaces}{port}{spaces}", SETTINGS["WHISPER_API_PORT"].type) == port


def test_toml_errors_name_file_and_line() -> None:
    with pytest.raises(ConfigError, match=r"whisper_api\.conf is not TOML.*line 2"):
        load("WHISPER_MODEL = 'tiny'\nWHISPER_LANGUAGE = fr\n")


def test_a_byte_order_mark_is_no_obstacle() -> None:
    assert load('\ufeffWHISPER_MODEL = "tiny"').config.model == "tiny"


# --- warnings ---


def test_an_unknown_key_is_named_with_the_nearest_known_one() -> None:
    loaded = load('WHISPER_MODLE = "tiny"\n[section]\nx = 1\n')
    assert loaded.warnings == (
        f"{loaded.path}:1: unknown key WHISPER_MODLE is ignored; did you mean WHISPER_MODEL?",
        f"{loaded.path}:2: unknown key section is ignored",
    )


@pytest.mark.parametrize("key", ["WHISPER_CMD", "WHISPER_OUTPUT_DIR"])
def test_retired_keys_are_accepted_and_warned_about(key: str) -> None:
    for loaded in (load(f'{key} = "/usr/bin/whisperx"'), load("", env={key: "x"})):
        (warning,) = loaded.warnings
        assert f"{key} has no effect" in warning
    assert load(f'{key} = ""').warnings == ()


# --- log level ---


@pytest.mark.parametrize(
    ("rust", "level"),
    [
        ("warn", "warning"),
        ("trace", "debug"),
        ("ERROR", "error"),
        ("info,whisper_api=debug", "debug"),
        ("hyper=trace", "info"),
        ("h2=off,warn", "warning"),
    ],
)
def test_rust_log_is_an_alias_for_the_log_level(rust: str, level: str) -> None:
    assert load(env={"RUST_LOG": rust}).config.log_level == level


def test_the_log_levels_own_name_wins_over_its_alias() -> None:
    assert load(env={"RUST_LOG": "trace", "WHISPER_LOG_LEVEL": "error"}).config.log_level == "error"
    assert load('WHISPER_LOG_LEVEL = "error"\nRUST_LOG = "trace"\n').config.log_level == "error"
    assert load('WHISPER_LOG_LEVEL = "error"', env={"RUST_LOG": "debug"}).config.log_level == "debug"


# --- secrets ---


def test_the_token_is_read_from_its_file_and_trimmed() -> None:
    Path("token.txt").write_text(f"\n  {TOKEN}\t\n")
    loaded = load('WHISPER_HF_TOKEN_FILE = "token.txt"')
    assert loaded.config.hf_token == TOKEN
    assert loaded.origins["HF_TOKEN"] == str(Path.cwd() / "token.txt")
    assert load(env={"HF_TOKEN": " other \n"}).config.hf_token == "other"


def test_a_missing_token_file_is_silent_and_an_unreadable_one_is_not() -> None:
    missing = load('WHISPER_HF_TOKEN_FILE = "nowhere.txt"')
    assert missing.config.hf_token is None
    assert missing.warnings == ()
    Path("folder").mkdir()
    (warning,) = load('WHISPER_HF_TOKEN_FILE = "folder"').warnings
    assert "WHISPER_HF_TOKEN_FILE" in warning


@pytest.mark.parametrize("place", ["file", "environment", "token file"])
def test_a_token_is_never_shown(place: str) -> None:
    Path("hf_token.txt").write_text(TOKEN if place == "token file" else "")
    loaded = load(
        f'HF_TOKEN = "{TOKEN}"' if place == "file" else "", {"HF_TOKEN": TOKEN} if place == "environment" else {}
    )
    assert loaded.config.hf_token == TOKEN
    for text in (describe(loaded), repr(loaded), str(loaded), repr(loaded.config), str(loaded.warnings)):
        assert TOKEN not in text
    assert 'HF_TOKEN = "***"' in describe(loaded)


def test_a_token_is_not_shown_when_it_cannot_be_used() -> None:
    with pytest.raises(ConfigError, match="HF_TOKEN") as caught:
        load("HF_TOKEN = 123456789")
    assert "123456789" not in str(caught.value)


# --- the shipped file, the Struct and the documents ---


def _comment_and_value(setting: Setting) -> str:
    return f"# {setting.help}\n{setting.key} = {format_value(setting, setting.default)}"


def test_the_shipped_file_has_every_key_its_default_and_one_line_each() -> None:
    text = (ROOT / "whisper_api.conf").read_text(encoding="utf-8")
    entries = text.strip().split("\n\n")[1:]
    assert entries == [_comment_and_value(setting) for setting in settings()]


def test_the_shipped_file_gives_the_defaults() -> None:
    loaded = Config.load(ROOT / "whisper_api.conf", env={})
    for setting in settings():
        default = ROOT / setting.default if isinstance(setting.default, Path) else setting.default
        if setting.key != "HF_TOKEN":
            assert getattr(loaded.config, setting.attribute) == default, setting.key
    assert loaded.warnings == ()


def test_the_documents_name_the_keys_that_a_running_server_changes() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- reloadable -->\n(.*)\n<!-- /reloadable -->", text, re.DOTALL)
    assert found is not None
    names = re.findall(r"`([A-Z_]+)`", found[1])
    assert names == [setting.key for setting in settings() if setting.key in RELOADABLE]
    assert set(names) == RELOADABLE


def test_the_documents_have_every_key_with_its_default_and_meaning() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- configuration -->\n(.*)\n<!-- /configuration -->", text, re.DOTALL)
    assert found is not None
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in found[1].splitlines()[2:]]
    assert rows == [
        (
            f"`{setting.key}`",
            "–" if setting.default is None else f"`{format_value(setting, setting.default).strip(chr(34))}`",
            setting.help,
        )
        for setting in settings()
    ]


def test_every_setting_has_a_help_text_and_a_valid_default() -> None:
    for setting in settings():
        assert setting.help, setting.key
        assert "|" not in setting.help
        if setting.default is not None:
            assert convert(setting.default, setting.type) == setting.default
    assert len({setting.key for setting in settings()}) == len(Config.__struct_fields__)
    with pytest.raises(AttributeError):
        Config().port = 1  # type: ignore[misc]


def test_the_words_are_those_of_the_engine_and_the_formats() -> None:
    from whisper_api.engine.worker.device import COMPUTE_TYPES
    from whisper_api.formats import FORMATS

    assert get_args(ComputeType) == COMPUTE_TYPES
    assert set(get_args(OutputFormat)) == set(FORMATS)


def test_conversion_never_repeats_the_value() -> None:
    for annotation in (int, float, bool, Path, OutputFormat, list[int]):
        with pytest.raises(ValueError, match=r"^expected ") as caught:
            convert(msgspec.UNSET, annotation)
        assert "UNSET" not in str(caught.value)
