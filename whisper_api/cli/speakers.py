"""``whisper-api speakers``: enrols, lists, renames and deletes the known speakers of a server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from whisper_api.cli.flags import subcommand_adder
from whisper_api.cli.outputs import print_table
from whisper_api.cli.server_arguments import add_server_arguments
from whisper_api.cli.server_arguments import run as run
from whisper_api.client import Client
from whisper_api.errors import InvalidOption, SpeakerNotFound
from whisper_api.voices import Speaker

SHOWN_COLUMNS = ("id", "name", "recordings", "seconds", "model", "changed")


def add_arguments(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the subcommands.

    Args:
        parser: parser of the command.
        common: flags of every command.
    """
    add = subcommand_adder(parser, common, add_server_arguments)
    create = add("create", "enrol a person from recordings of 2 to 10 seconds, which are not kept", _create)
    create.add_argument("name", metavar="NAME", help="the person's label in transcripts")
    add("list", "show the known speakers", _list)
    samples = add("add", "add recordings to a known speaker", _add)
    rename = add("rename", "give a known speaker another name", _rename)
    delete = add("delete", "delete a known speaker's name and voice", _delete)
    for command in (samples, rename, delete):
        command.add_argument("speaker", metavar="NAME_OR_ID", help="as the list shows it")
    rename.add_argument("name", metavar="NAME", help="the new name")
    for command in (create, samples):
        command.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a recording of this person alone")


def _create(args: argparse.Namespace, client: Client) -> None:
    _show([client.enroll(args.name, args.files)])


def _list(args: argparse.Namespace, client: Client) -> None:
    _show(client.speakers())


def _add(args: argparse.Namespace, client: Client) -> None:
    _show([client.add_samples(_id_of(args.speaker, client), args.files)])


def _rename(args: argparse.Namespace, client: Client) -> None:
    _show([client.rename_speaker(_id_of(args.speaker, client), args.name)])


def _delete(args: argparse.Namespace, client: Client) -> None:
    client.delete_speaker(_id_of(args.speaker, client))


def _id_of(name_or_id: str, client: Client) -> str:
    """The id of a speaker.

    Raises:
        SpeakerNotFound: there is no such speaker.
        InvalidOption: an admin sees several speakers of this name.
    """
    found = [each.speaker_id for each in client.speakers() if name_or_id in (each.speaker_id, each.name)]
    if len(found) > 1:
        raise InvalidOption("speaker", f"several are named {name_or_id!r}: give the id")
    if not found:
        raise SpeakerNotFound(name_or_id)
    return found[0]


def _show(speakers: Sequence[Speaker]) -> None:
    rows = [
        (
            each.speaker_id,
            each.name,
            str(each.samples),
            f"{each.seconds:g}",
            each.model,
            f"{each.updated_at[:10]} {each.updated_at[11:19]}Z",
        )
        for each in speakers
    ]
    print_table([SHOWN_COLUMNS, *rows])
    for warning in (warning for each in speakers for warning in each.warnings):
        print(f"whisper-api speakers: warning: {warning}", file=sys.stderr)
