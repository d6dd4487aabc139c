"""Flags of the command line, derived from the fields of Structs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from whisper_api.coercion import convert, help_line, union_parts
from whisper_api.config import settings
from whisper_api.errors import InvalidOption
from whisper_api.options import TranscriptionOptions

S = TypeVar("S", bound=msgspec.Struct)

# Where and how models run, for the commands that transcribe.
MACHINE_FLAGS = ("--device", "--device-index", "--compute-type", "--batch-size", "--encoder", "--models-dir")
# The keys of the flags that have other names than their keys.
OTHER_KEYS = {"--host": "WHISPER_API_HOST", "--port": "WHISPER_API_PORT", "--tmp-dir": "WHISPER_TMP_FILES"}


def add_flag(group: argparse._ActionsContainer, flag: str, annotation: Any, *, dest: str, help: str) -> None:
    """Add a flag. The value's type determines the choices, the bounds and whether a ``--no-`` form exists.

    Args:
        group: a parser or an argument group.
        flag: the flag with its dashes.
        annotation: the value's type, as in its Struct.
        dest: the attribute of the namespace; absent from it unless the command line has the flag.
        help: the help line.
    """
    parts = union_parts(annotation)
    common: dict[str, Any] = {"dest": dest, "default": argparse.SUPPRESS, "help": help.replace("%", "%%")}
    if any(isinstance(part, msgspec.inspect.BoolType) for part in parts):
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        return
    match parts:
        case [msgspec.inspect.LiteralType(values=values)]:
            group.add_argument(flag, choices=[str(value) for value in values], **common)
        case _:
            group.add_argument(flag, type=_converter(annotation), metavar=_metavar(parts), **common)


def add_struct_flags(group: argparse._ActionsContainer, struct: type[msgspec.Struct]) -> None:
    """Add a flag for each field of a Struct, with the field's description as the help line.

    Args:
        group: a parser or an argument group.
        struct: the class of the Struct.
    """
    for field in msgspec.structs.fields(struct):
        flag = f"--{field.name.replace('_', '-')}"
        add_flag(group, flag, field.type, dest=field.name, help=help_line(field.type))


def struct_of(args: argparse.Namespace, struct: type[S]) -> S:
    """Make a Struct from the flags of the command line; fields without a flag keep their defaults.

    Args:
        args: the parsed arguments.
        struct: the class, whose flags :func:`add_struct_flags` has added.
    """
    names = struct.__struct_fields__
    return struct(**{name: value for name, value in vars(args).items() if name in names})


def terms_in(file: Path) -> tuple[str, ...]:
    """The terms of a file: its lines without empty ones and without surrounding spaces.

    Args:
        file: UTF-8, a term in each line.

    Raises:
        InvalidOption: the file cannot be read.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOption("vocabulary", f"{file} cannot be read: {error}") from None
    return tuple(dict.fromkeys(line for line in lines if line))


def options_of(args: argparse.Namespace) -> TranscriptionOptions:
    """The options of a transcription. A vocabulary that is the path of a file becomes the terms of the file.

    Args:
        args: the parsed arguments, with the flags of :class:`~whisper_api.schema.TranscriptionOptions`.

    Raises:
        InvalidOption: the options contradict each other, or the file of terms cannot be read.
    """
    options = struct_of(args, TranscriptionOptions)
    if isinstance(options.vocabulary, str) and (file := Path(options.vocabulary)).is_file():
        return msgspec.structs.replace(options, vocabulary=terms_in(file))
    return options


def add_setting_flags(group: argparse._ActionsContainer, *flags: str) -> None:
    """Add flags that override settings of the configuration.

    Args:
        group: a parser or an argument group.
        flags: each has the name of its key, as ``--data-dir`` of ``WHISPER_DATA_DIR``, or is in :data:`OTHER_KEYS`.
    """
    table = {setting.key: setting for setting in settings()}
    for flag in flags:
        key = OTHER_KEYS.get(flag) or f"WHISPER{flag[1:].replace('-', '_').upper()}"
        add_flag(group, flag, table[key].type, dest=key, help=table[key].help)


def overridden_settings(args: argparse.Namespace) -> dict[str, object]:
    """Key to value of the settings that the command line overrides."""
    keys = {setting.key for setting in settings()}
    return {name: value for name, value in vars(args).items() if name in keys}


def subcommand_adder(
    parser: argparse.ArgumentParser,
    common: argparse.ArgumentParser,
    arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> Callable[[str, str, Callable[..., Any]], argparse.ArgumentParser]:
    """A function that adds a subcommand, from its name, its help line and its action.

    Args:
        parser: parser of the command.
        common: flags of every command.
        arguments: adds what every subcommand has.
    """
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, help: str, action: Callable[..., Any]) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.", parents=[common])
        if arguments is not None:
            arguments(command)
        command.set_defaults(action=action)
        return command

    return add


def _converter(annotation: Any) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return convert(text, annotation)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None

    return read


def _metavar(parts: list[msgspec.inspect.Type]) -> str:
    match parts[0]:
        case msgspec.inspect.IntType():
            return "N"
        case msgspec.inspect.FloatType():
            return "NUMBER"
        case msgspec.inspect.CustomType():
            return "PATH"
        case _:
            return "TEXT"
