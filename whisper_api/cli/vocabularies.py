"""``whisper-api vocabularies``: stores, shows, lists and deletes the vocabularies of a key on a server."""

from __future__ import annotations

import argparse
from pathlib import Path

from whisper_api.cli.flags import subcommand_adder, terms_in
from whisper_api.cli.outputs import print_table
from whisper_api.cli.server_arguments import add_server_arguments
from whisper_api.cli.server_arguments import run as run
from whisper_api.client import Client


def add_arguments(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the subcommands.

    Args:
        parser: parser of the command.
        common: flags of every command.
    """
    add = subcommand_adder(parser, common, add_server_arguments)
    put = add("put", "store the terms of a file instead of those of this name", _put)
    put.add_argument("name", metavar="NAME", help="1 to 64 letters, digits, dots, hyphens and underscores")
    put.add_argument("file", metavar="FILE", type=Path, help="UTF-8, a term in each line")
    show = add("show", "print the terms of a vocabulary, each in a line", _show)
    delete = add("delete", "delete a vocabulary", _delete)
    for command in (show, delete):
        command.add_argument("name", metavar="NAME", help="as the list shows it")
    add("list", "show the names and sizes of the vocabularies", _list)


def _put(args: argparse.Namespace, client: Client) -> None:
    client.put_vocabulary(args.name, terms_in(args.file))


def _show(args: argparse.Namespace, client: Client) -> None:
    print(*client.vocabulary(args.name).terms, sep="\n")


def _list(args: argparse.Namespace, client: Client) -> None:
    print_table([("name", "terms"), *((each.name, str(len(each.terms))) for each in client.vocabularies())])


def _delete(args: argparse.Namespace, client: Client) -> None:
    client.delete_vocabulary(args.name)
