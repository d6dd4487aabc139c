"""``whisper-api keys``: creates, lists and revokes API keys, also while a server runs."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from whisper_api.cli.flags import subcommand_adder
from whisper_api.cli.outputs import complain, print_table
from whisper_api.config import Loaded
from whisper_api.errors import InvalidOption

if TYPE_CHECKING:
    from whisper_api.access.keys import Key, KeyRing
    from whisper_api.audit_records import Action

__all__ = ["add_arguments", "run"]

# Records an action on a key in the audit trail.
Record = Callable[["Action", str], None]
SHOWN_COLUMNS = ("id", "name", "role", "created", "revoked")


def add_arguments(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the subcommands.

    Args:
        parser: parser of the command.
        common: flags of every command.
    """
    add = subcommand_adder(parser, common, {"--data-dir": "WHISPER_DATA_DIR"})
    create = add("create", "make a key and print it; it cannot be shown again", _create)
    create.add_argument("name", metavar="NAME", help="the key's name")
    create.add_argument(
        "--role",
        choices=["user", "admin", "metrics"],
        default="user",
        help="a user sees its own jobs, an admin all; metrics: reads /metrics and nothing else",
    )
    add("list", "show the keys, without their secrets", _list)
    revoke = add("revoke", "refuse a key from now on", _revoke)
    revoke.add_argument("key", metavar="NAME_OR_ID", help="as the list shows it")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Run the subcommand.

    Args:
        args: the parsed arguments.
        loaded: the configuration.

    Returns:
        0 on success, 2 when the key does not exist or the name cannot be used.
    """
    from whisper_api.access.audit import record_command
    from whisper_api.access.keys import KeyRing
    from whisper_api.store.jobs import DATABASE_NAME, JobStore

    store = JobStore(loaded.config.data_dir / DATABASE_NAME)
    try:
        args.action(args, KeyRing(store), functools.partial(record_command, store, loaded.config))
    except InvalidOption as error:
        return complain("keys", error, 2)
    finally:
        store.close()
    return 0


def _create(args: argparse.Namespace, ring: KeyRing, record: Record) -> None:
    key, token = ring.create(args.name, args.role)
    record("key.create", key.key_id)
    # Standard output has the key only, so that a script can read it.
    print(token, flush=True)
    print(
        f"key {key.name!r} (id {key.key_id}, role {key.role}) was made. It cannot be shown again. "
        "Send it with every request: Authorization: Bearer <key>",
        file=sys.stderr,
    )


def _list(args: argparse.Namespace, ring: KeyRing, record: Record) -> None:
    print_table([SHOWN_COLUMNS, *map(_as_row, ring.list())])


def _revoke(args: argparse.Namespace, ring: KeyRing, record: Record) -> None:
    key = ring.revoke(args.key)
    record("key.revoke", key.key_id)
    print(f"key {key.name!r} (id {key.key_id}) is revoked", file=sys.stderr)


def _as_row(key: Key) -> tuple[str, ...]:
    return (
        key.key_id,
        key.name,
        key.role,
        _when(key.created_at),
        "no" if not key.revoked_at else _when(key.revoked_at),
    )


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")
