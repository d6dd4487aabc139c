"""Reads settings from a file, the environment, the command line and the token file."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whisper_api.coercion import convert
from whisper_api.errors import ConfigError

# Keys whose values are never shown.
SECRETS = frozenset({"HF_TOKEN"})

FILE_NAME = "whisper_api.conf"
FILE_VARIABLE = "WHISPER_API_CONFIG"
APP_NAME = "whisper-api"

LOG_LEVEL = "WHISPER_LOG_LEVEL"
LOG_LEVEL_ALIAS = "RUST_LOG"
# Level names of the Rust server that differ from Python's.
_LOG_WORDS = {"trace": "debug", "warn": "warning", "off": "critical"}

_RETIRED = {
    "WHISPER_CMD": "nothing is shelled out any more",
    "WHISPER_OUTPUT_DIR": "no output files are written any more; results are kept with their jobs",
}


@dataclass(frozen=True)
class Setting:
    """A row of the table of settings.

    Attributes:
        key: the name in the file and in the environment.
        attribute: the name in :class:`~whisper_api.config.Config`.
        type: the type of the value, annotated with its bounds.
        default: the default value.
        help: the help line.
    """

    key: str
    attribute: str
    type: Any
    default: Any
    help: str


def read(
    rows: Sequence[Setting],
    path: str | os.PathLike[str] | None,
    env: Mapping[str, str],
    flags: Mapping[str, object],
) -> Sources:
    """Read all sources, in the order that :meth:`whisper_api.config.Config.load` describes.

    Args:
        rows: the table of settings.
        path: the configuration file; None to search for it.
        env: environment variables.
        flags: key to value, from the command line.

    Raises:
        ConfigError: a source cannot be read, or a value cannot be used.
    """
    sources = Sources(rows, _find_file(path, env))
    for key in (LOG_LEVEL_ALIAS, *sources.settings):
        sources.set(key, env.get(key), f"environment variable {key}", Path.cwd())
    for key, value in flags.items():
        sources.set(key, value, "command line", Path.cwd())
    sources.read_token_file()
    return sources


class Sources:
    """The values from all sources. A later value replaces an earlier value.

    Args:
        rows: the table of settings.
        path: the configuration file; None without a file.

    Attributes:
        settings: key to row of the table.
        path: the configuration file; None without a file.
        values: attribute to value.
        origins: key to the origin of its value.
        warnings: one sentence each.
    """

    def __init__(self, rows: Sequence[Setting], path: Path | None) -> None:
        self.settings = {setting.key: setting for setting in rows}
        self.path = path
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.warnings: list[str] = []
        directories = _user_directories() if path is None else {}
        for setting in self.settings.values():
            value = directories.get(setting.key, setting.default)
            if isinstance(value, Path) and path is not None:
                value = path.parent / value
            self.values[setting.attribute] = value
            self.origins[setting.key] = "default"
        if path is not None:
            self._read_file(path)

    def _read_file(self, file: Path) -> None:
        text = _read_text(file)
        found = _parse(text, file)
        # The alias is read first, so that WHISPER_LOG_LEVEL wins when the file has both.
        for key in sorted(found, key=lambda key: key != LOG_LEVEL_ALIAS):
            origin = f"{file}{_line_of(key, text)}"
            if key in self.settings or key == LOG_LEVEL_ALIAS:
                self.set(key, found[key], origin, file.parent)
            else:
                self.warnings.append(f"{origin}: unknown key {key} is ignored{_nearest(key, self.settings)}")

    def set(self, key: str, value: object, origin: str, base: Path) -> None:
        """Set a value unless it is empty.

        Args:
            key: key of the setting.
            value: the value; None and empty text are ignored.
            origin: the origin of the value, for messages.
            base: the directory of relative paths.

        Raises:
            ConfigError: the value cannot be used.
        """
        if value is None or (isinstance(value, str) and not value.strip()):
            return
        if key in (LOG_LEVEL, LOG_LEVEL_ALIAS):
            value = _log_level(value, key == LOG_LEVEL_ALIAS)
            key = LOG_LEVEL
            if value is None:
                return
        setting = self.settings[key]
        try:
            converted = convert(value, setting.type)
        except ValueError as error:
            shown = "the value" if key in SECRETS else repr(value)
            raise ConfigError(f"{origin}: {key}: {shown} cannot be used: {error}") from None
        if isinstance(converted, Path):
            converted = base / converted
        self.values[setting.attribute] = converted
        self.origins[key] = origin
        if key in _RETIRED:
            self.warnings.append(f"{origin}: {key} has no effect: {_RETIRED[key]}")

    def read_token_file(self) -> None:
        """Read the token file, unless another source has set the token. A missing file causes no warning."""
        if self.values["hf_token"] is not None:
            return
        file: Path = self.values["hf_token_file"]
        try:
            token = file.read_text(encoding="utf-8-sig").strip()
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            self.warnings.append(f"WHISPER_HF_TOKEN_FILE: {file} cannot be read: {reason}")
            return
        if token:
            self.values["hf_token"] = token
            self.origins["HF_TOKEN"] = str(file)


def _find_file(path: str | os.PathLike[str] | None, env: Mapping[str, str]) -> Path | None:
    named, by = (path, "--config") if path is not None else (env.get(FILE_VARIABLE, "").strip(), FILE_VARIABLE)
    if named:
        file = Path(named).expanduser().absolute()
        if not file.is_file():
            raise ConfigError(f"{by}: there is no file {file}")
        return file
    here = Path.cwd() / FILE_NAME
    if here.is_file():
        return here
    import platformdirs

    users = platformdirs.user_config_path(APP_NAME, appauthor=False) / FILE_NAME
    return users if users.is_file() else None


def _user_directories() -> dict[str, Path]:
    import platformdirs

    data = platformdirs.user_data_path(APP_NAME, appauthor=False)
    return {
        "WHISPER_MODELS_DIR": platformdirs.user_cache_path(APP_NAME, appauthor=False) / "models_cache",
        "WHISPER_TMP_FILES": data / "tmp",
        "WHISPER_DATA_DIR": data,
        "WHISPER_HF_TOKEN_FILE": platformdirs.user_config_path(APP_NAME, appauthor=False) / "hf_token.txt",
    }


def _read_text(file: Path) -> str:
    try:
        # Windows editors may add a byte order mark, which TOML does not allow.
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text") from error


def _parse(text: str, file: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML (KEY = value, text in quotes): {error}") from error


def _line_of(key: str, text: str) -> str:
    found = re.search(rf"""^[ \t]*\[?["']?{re.escape(key)}["']?[ \t]*[=\]]""", text, re.MULTILINE)
    return f":{text.count(chr(10), 0, found.start()) + 1}" if found else ""


def _nearest(key: str, known: Mapping[str, Setting]) -> str:
    import difflib

    close = difflib.get_close_matches(key.upper(), known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _log_level(value: object, is_alias: bool) -> object:
    """The level by its Python name; None when ``RUST_LOG`` names other programs only.

    ``RUST_LOG`` may contain directives for several programs: ``info,whisper_api=debug``.
    """
    if not isinstance(value, str):
        return value
    if not is_alias:
        word = value.strip().lower()
        return _LOG_WORDS.get(word, word)
    level = None
    for directive in value.lower().replace(" ", "").split(","):
        target, _, word = directive.rpartition("=")
        word = _LOG_WORDS.get(word, word)
        if (not target or target.startswith("whisper")) and word in ("debug", "info", "warning", "error", "critical"):
            level = word
    return level
