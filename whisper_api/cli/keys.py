"""``whisper-api keys``: creates, lists, changes, rotates and revokes API keys, also while a server runs."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from whisper_api.cli.flags import add_setting_flags, subcommand_adder
from whisper_api.cli.outputs import print_table
from whisper_api.config import Loaded
from whisper_api.errors import InvalidOption

if TYPE_CHECKING:
    from whisper_api.access.keys import KeyRing
    from whisper_api.store.rows import Key

SHOWN_COLUMNS = ("id", "name", "role", "scopes", "created", "expires", "last used", "state")
DEFAULT_GRACE = "24h"
# Values that take a limit or the scopes away again.
DEFAULT, ALL = "default", "all"


def add_arguments(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the subcommands.

    Args:
        parser: parser of the command.
        common: flags of every command.
    """
    add = subcommand_adder(parser, common, lambda each: add_setting_flags(each, "--data-dir"))
    create = add("create", "make a key and print it; it cannot be shown again", _create)
    create.add_argument("name", metavar="NAME", help="the key's name")
    _add_values(create)
    add("list", "show the keys, without their secrets", _list)
    show = add("show", "show all of a key but its secret", _show)
    change = add("change", "change a key; what is not named stays as it is", _change)
    rotate = add("rotate", "give a key a new secret and print it; the old one is accepted for some time more", _rotate)
    revoke = add("revoke", "refuse a key from now on", _revoke)
    for command in (show, change, rotate, revoke):
        command.add_argument("key", metavar="NAME_OR_ID", help="as the list shows it")
    change.add_argument("--name", default=argparse.SUPPRESS, help="the new name")
    _add_values(change)
    rotate.add_argument(
        "--grace",
        default=DEFAULT_GRACE,
        metavar="TIME",
        help="how long earlier secrets are accepted: 30m, 24h (the default), up to 30d; 0 ends them at once",
    )


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Run the subcommand.

    Args:
        args: the parsed arguments.
        loaded: the configuration.

    Returns:
        0 on success, 2 when the key does not exist or a value cannot be used.
    """
    from whisper_api.access.audit import record_command
    from whisper_api.access.keys import KeyRing
    from whisper_api.store.jobs import DATABASE_NAME, JobStore

    with contextlib.closing(JobStore(loaded.config.data_dir / DATABASE_NAME)) as store:
        # Records an action on a key in the audit trail.
        args.record = functools.partial(record_command, store, loaded.config)
        args.action(args, KeyRing(store))
    return 0


def _add_values(command: argparse.ArgumentParser) -> None:
    from typing import get_args

    from whisper_api.key_values import Role, Scope

    # A flag that is not given leaves the value as it is, or at its default.
    common: dict[str, Any] = {"default": argparse.SUPPRESS}
    command.add_argument(
        "--role",
        choices=get_args(Role),
        help="user: sees its own jobs; admin: sees all jobs, manages keys; operator: sees states and metrics, no text; "
        "metrics: reads /metrics and nothing else",
        **common,
    )
    command.add_argument(
        "--expires", metavar="TIME", help="90d, 2027-01-31, a time (RFC 3339) or never, the default", **common
    )
    command.add_argument(
        "--scope",
        action="append",
        choices=(*get_args(Scope), ALL),
        dest="scopes",
        help="what the key may do of all that its role allows; may be repeated (default: all)",
        **common,
    )
    command.add_argument(
        "--rate",
        metavar="LIMITS",
        help="such as '60/minute; 1000/day', none, or default for the configuration's",
        **common,
    )
    command.add_argument(
        "--quota",
        metavar="QUOTAS",
        help="such as '600 minutes/day; 1000 jobs/month', none, or default for the configuration's",
        **common,
    )


def _create(args: argparse.Namespace, ring: KeyRing) -> None:
    key, token = ring.create(args.name, **_values(args))
    args.record("key.create", key.key_id)
    # Standard output has the key only, so that a script can read it.
    print(token, flush=True)
    print(
        f"key {key.name!r} (id {key.key_id}, role {key.role}) was made. It cannot be shown again. "
        "Send it with every request: Authorization: Bearer <key>",
        file=sys.stderr,
    )


def _list(args: argparse.Namespace, ring: KeyRing) -> None:
    print_table([SHOWN_COLUMNS, *map(_as_row, ring.list())])


def _show(args: argparse.Namespace, ring: KeyRing) -> None:
    from whisper_api.access.keys import access_key

    # By its id, a key that has ended can be shown too.
    ended = [key for key in ring.list() if key.key_id == args.key and key.revoked_at is not None]
    for name, value in access_key(ended[0] if ended else ring.find(args.key)).to_dict().items():
        text = ", ".join(value) if isinstance(value, list) else value
        print(f"{name.replace('_', ' ')}: {text or '-'}")


def _change(args: argparse.Namespace, ring: KeyRing) -> None:
    from whisper_api.key_values import KeyChange

    values = _values(args)
    if "name" in vars(args):
        values["name"] = args.name
    key = ring.change(ring.find(args.key).key_id, KeyChange(**values))
    args.record("key.change", key.key_id)
    print(f"key {key.name!r} (id {key.key_id}) is changed", file=sys.stderr)


def _rotate(args: argparse.Namespace, ring: KeyRing) -> None:
    from whisper_api.access.key_rules import duration

    try:
        grace_seconds = duration(args.grace)
    except ValueError as error:
        raise InvalidOption("grace", str(error)) from None
    key, token = ring.rotate(ring.find(args.key).key_id, grace_seconds)
    args.record("key.rotate", key.key_id)
    print(token, flush=True)
    until = f"are accepted until {_when(key.old_secret_until)}" if grace_seconds else "are refused from now on"
    print(f"key {key.name!r} (id {key.key_id}) has a new secret; earlier ones {until}", file=sys.stderr)


def _revoke(args: argparse.Namespace, ring: KeyRing) -> None:
    key = ring.revoke(args.key)
    args.record("key.revoke", key.key_id)
    print(f"key {key.name!r} (id {key.key_id}) is revoked", file=sys.stderr)


def _values(args: argparse.Namespace) -> dict[str, Any]:
    """The values of a key that the command line names."""
    from whisper_api.access.key_rules import moment

    values = {name: value for name, value in vars(args).items() if name in ("role", "scopes", "rate", "quota")}
    if "scopes" in values:
        values["scopes"] = () if ALL in values["scopes"] else tuple(values["scopes"])
    values |= {name: None for name in ("rate", "quota") if values.get(name) == DEFAULT}
    if "expires" in vars(args):
        try:
            values["expires_at"] = moment(args.expires, datetime.now(timezone.utc))
        except (ValueError, OverflowError, OSError) as error:
            raise InvalidOption("expires", str(error)) from None
    return values


def _as_row(key: Key) -> tuple[str, ...]:
    from whisper_api.access.keys import access_key

    shown = access_key(key)
    state: str = shown.state
    if shown.revoked_at is not None:
        state = f"revoked {_when(key.revoked_at)}"
    elif shown.old_secret_until is not None:
        state = f"{state}, old secret until {_when(key.old_secret_until)}"
    return (
        key.key_id,
        key.name,
        key.role,
        ",".join(key.scopes) or ALL,
        _when(key.created_at),
        _when(key.expires_at) or "never",
        _when(key.last_used_at) or "never",
        state,
    )


def _when(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")
