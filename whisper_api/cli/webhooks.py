"""``whisper-api webhooks``: makes, lists, tests and deletes the webhook endpoints of a key, and shows deliveries."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import get_args

from whisper_api.cli.flags import subcommand_adder
from whisper_api.cli.outputs import print_table
from whisper_api.cli.server_arguments import add_server_arguments
from whisper_api.cli.server_arguments import run as run
from whisper_api.client import Client
from whisper_api.webhooks import EVENTS, DeliveryState, WebhookDelivery, WebhookEndpoint

SHOWN_DELIVERIES = 50


def add_arguments(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the subcommands.

    Args:
        parser: parser of the command.
        common: flags of every command.
    """
    add = subcommand_adder(parser, common, add_server_arguments)
    create = add("create", "make an endpoint for the events of the key's jobs, and print its id and secret", _create)
    create.add_argument("address", metavar="ADDRESS", help="URL that gets the deliveries")
    create.add_argument("--event", action="append", choices=EVENTS, help="only this event; may be repeated")
    create.add_argument(
        "--include-result", action="store_true", help="let the events of completed jobs carry the result"
    )
    create.add_argument("--description", default="", help="a note for people")
    add("list", "show the endpoints", _list)
    enable = add("enable", "send events to an endpoint again that was disabled", _enable)
    delete = add("delete", "delete an endpoint with its deliveries", _delete)
    test = add("test", "send a test event to an endpoint", _test)
    for command in (enable, delete, test):
        command.add_argument("endpoint", metavar="ID", help="as the list shows it")
    secret = add("secret", "print the secret that signs, of the key or of an endpoint", _secret)
    secret.add_argument("endpoint", metavar="ID", nargs="?", help="an endpoint; without it, the key's own secret")
    secret.add_argument("--rotate", action="store_true", help="make a new one first; the old one signs too for a day")
    deliveries = add("deliveries", "show the newest deliveries and what became of them", _deliveries)
    deliveries.add_argument("--state", choices=get_args(DeliveryState), help="only deliveries in this state")
    deliveries.add_argument("--job", metavar="ID", help="only deliveries of this job")
    deliveries.add_argument("--limit", type=int, default=SHOWN_DELIVERIES, metavar="N", help="most deliveries to show")
    resend = add("resend", "send deliveries again", _resend)
    resend.add_argument("deliveries", metavar="ID", nargs="+", help="as the list of deliveries shows it")


def _create(args: argparse.Namespace, client: Client) -> None:
    made = client.create_webhook(
        args.address, events=args.event, include_result=args.include_result, description=args.description
    )
    print(made.endpoint_id, client.webhook_secret(made.endpoint_id).secret, sep="\n")


def _list(args: argparse.Namespace, client: Client) -> None:
    _show_endpoints(client.webhooks())


def _enable(args: argparse.Namespace, client: Client) -> None:
    _show_endpoints([client.change_webhook(args.endpoint, enabled=True)])


def _delete(args: argparse.Namespace, client: Client) -> None:
    client.delete_webhook(args.endpoint)


def _test(args: argparse.Namespace, client: Client) -> None:
    _show_deliveries([client.test_webhook(args.endpoint)])


def _secret(args: argparse.Namespace, client: Client) -> None:
    read = client.rotate_webhook_secret if args.rotate else client.webhook_secret
    print(read(args.endpoint).secret)


def _deliveries(args: argparse.Namespace, client: Client) -> None:
    _show_deliveries(islice(client.webhook_deliveries(args.state, job_id=args.job), max(0, args.limit)))


def _resend(args: argparse.Namespace, client: Client) -> None:
    _show_deliveries([client.resend_webhook(delivery_id) for delivery_id in args.deliveries])


def _show_endpoints(endpoints: Sequence[WebhookEndpoint]) -> None:
    rows = [
        (
            each.endpoint_id,
            "enabled" if each.enabled else "disabled",
            ",".join(event.partition(".")[2] for event in each.events),
            each.url,
            each.disabled_reason or each.description,
        )
        for each in endpoints
    ]
    print_table([("id", "state", "events", "url", "note"), *rows])


def _show_deliveries(deliveries: Iterable[WebhookDelivery]) -> None:
    rows = [
        (
            each.delivery_id,
            each.state,
            each.type,
            each.job_id or "-",
            str(each.attempts),
            each.last_error or str(each.last_status or "-"),
            _moment(each.next_attempt_at),
        )
        for each in deliveries
    ]
    print_table([("id", "state", "event", "job", "attempts", "last", "next"), *rows])


def _moment(time: str | None) -> str:
    return "-" if time is None else f"{time[:10]} {time[11:19]}Z"
