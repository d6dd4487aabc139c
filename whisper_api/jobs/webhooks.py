"""Webhooks: the endpoints of a key, the secrets that sign, and the deliveries."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import logging
import time
import uuid
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from whisper_api.errors import InvalidOption
from whisper_api.outbound.addresses import is_public
from whisper_api.outbound.connecting import LOOKUP_SECONDS, Connector, ConnectRules, NotReachable
from whisper_api.outbound.urls import UrlRefused, host_of, target_of
from whisper_api.records import made_of, rfc3339
from whisper_api.store.deliveries import Delivery, DeliveryFilter
from whisper_api.store.job_search import page_of
from whisper_api.store.jobs import JobStore
from whisper_api.store.webhooks import Endpoint, SecretPair
from whisper_api.webhooks import (
    EVENTS,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEventType,
    WebhookSecret,
    new_secret,
)

log = logging.getLogger("whisper_api.jobs")

MAX_ENDPOINTS = 20
MAX_DESCRIPTION_CHARACTERS = 255
# The secret before signs for this long, too.
ROTATION_SECONDS = 24 * 3600.0
NOT_PUBLIC = "its host must have a public address, or be one of WEBHOOK_PRIVATE_HOSTS"


class EndpointChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """New values for fields of an endpoint; an absent field stays.

    Attributes:
        url: where deliveries are sent.
        events: types of the events that are sent; each once.
        include_result: whether the event of a Completed job carries the result.
        description: a note for people.
        enabled: whether events are sent. Pending deliveries of an endpoint that is disabled are given up.
    """

    url: str | msgspec.UnsetType = UNSET
    events: tuple[WebhookEventType, ...] | msgspec.UnsetType = UNSET
    include_result: bool | msgspec.UnsetType = UNSET
    description: str | msgspec.UnsetType = UNSET
    enabled: bool | msgspec.UnsetType = UNSET


class Webhooks:
    """The webhooks of all keys. Each key sees its own endpoints only; without authorization all callers share one set.

    Every method raises StorageError when the database cannot be used. A method with an ``endpoint_id`` raises
    WebhookNotFound when the owner has no such endpoint.

    Args:
        store: the store of the webhooks.
        private_hosts: hosts whose addresses need not be public, as in :class:`ConnectRules`.
    """

    def __init__(self, store: JobStore, private_hosts: Collection[str] = ()) -> None:
        self._store = store
        self._private_hosts = private_hosts

    def list(self, owner: str) -> list[WebhookEndpoint]:
        """The endpoints of an owner, the oldest first."""
        return [_shown_endpoint(each) for each in self._store.endpoints(owner)]

    def get(self, owner: str, endpoint_id: str) -> WebhookEndpoint:
        """An endpoint.

        Args:
            owner: id of the key.
            endpoint_id: id of the endpoint.
        """
        return _shown_endpoint(self._store.endpoint(owner, endpoint_id))

    def create(self, owner: str, url: str, values: EndpointChange) -> WebhookEndpoint:
        """Make an endpoint. Blocks while the name of its host is looked up.

        Args:
            owner: id of the key.
            url: where deliveries are sent.
            values: the other fields; all events by default.

        Raises:
            InvalidOption: a value cannot be used, the host has no address that the server may connect to, or the owner
                has the most endpoints already.
        """
        given = {"events": EVENTS, **self._checked(replace(values, url=url))}
        now, secrets = time.time(), SecretPair(secret=new_secret())
        endpoint = Endpoint(
            endpoint_id=str(uuid.uuid4()), owner=owner, secrets=secrets, created_at=now, updated_at=now, **given
        )
        if not self._store.add_endpoint(endpoint, most=MAX_ENDPOINTS):
            raise InvalidOption("url", f"there are {MAX_ENDPOINTS} endpoints already: delete one first")
        log.info("webhook endpoint created", extra={"endpoint_id": endpoint.endpoint_id})
        return _shown_endpoint(endpoint)

    def change(self, owner: str, endpoint_id: str, values: EndpointChange) -> WebhookEndpoint:
        """Change fields of an endpoint. Pending deliveries go to the new address.

        Args:
            owner: id of the key.
            endpoint_id: id of the endpoint.
            values: the new values.

        Raises:
            InvalidOption: a value cannot be used, or the host has no address that the server may connect to.
        """
        # First, so that no name is looked up in vain. The lookup stays outside of the transaction.
        self._store.endpoint(owner, endpoint_id)
        given = {**self._checked(values), "updated_at": time.time()}
        return _shown_endpoint(self._store.change_endpoint(owner, endpoint_id, lambda found: replace(found, **given)))

    def delete(self, owner: str, endpoint_id: str) -> None:
        """Delete an endpoint with its secrets and deliveries.

        Args:
            owner: id of the key.
            endpoint_id: id of the endpoint.
        """
        self._store.delete_endpoint(owner, endpoint_id)

    def secret(self, owner: str, endpoint_id: str | None = None) -> WebhookSecret:
        """The secret that signs deliveries.

        Args:
            owner: id of the key.
            endpoint_id: id of the endpoint; None for the owner's own secret, which signs the deliveries to the
                ``webhook_url`` of its jobs. It is made when it is needed first.
        """
        if endpoint_id is not None:
            return _shown_secret(self._store.endpoint(owner, endpoint_id).secrets)
        return _shown_secret(self._own_secrets(owner))

    def rotate(self, owner: str, endpoint_id: str | None = None) -> WebhookSecret:
        """Make a new secret. The one before signs too for a day, so that receivers can change to the new one.

        Args:
            owner: as with :meth:`secret`.
            endpoint_id: as with :meth:`secret`.
        """
        secret, until = new_secret(), time.time() + ROTATION_SECONDS
        if endpoint_id is None:
            return _shown_secret(
                self._store.signing_secrets(
                    owner, lambda pair: SecretPair(secret=secret) if pair is None else pair.rotated(secret, until)
                )
            )

        def change(found: Endpoint) -> Endpoint:
            return replace(found, secrets=found.secrets.rotated(secret, until), updated_at=time.time())

        return _shown_secret(self._store.change_endpoint(owner, endpoint_id, change).secrets)

    def test(self, owner: str, endpoint_id: str) -> WebhookDelivery:
        """Send a test event to an endpoint, in one attempt.

        Args:
            owner: id of the key.
            endpoint_id: id of the endpoint.

        Returns:
            The delivery, which has just begun.

        Raises:
            InvalidOption: the endpoint is disabled.
        """
        return _shown_delivery(self._store.add_test(owner, endpoint_id, time.time()))

    def deliveries(
        self, owner: str | None, filter: DeliveryFilter, *, limit: int = 50, after: str | None = None
    ) -> tuple[Sequence[WebhookDelivery], str | None]:
        """A page of deliveries, newest first.

        Args:
            owner: owner whose deliveries the caller may see; None for all.
            filter: further conditions.
            limit: most deliveries on the page, up to 1000.
            after: the cursor of the page before; None for the first page.

        Returns:
            The deliveries, and the cursor for the next page; None on the last one.

        Raises:
            InvalidOption: ``limit`` or ``after`` is wrong.
        """
        page, cursor = page_of(functools.partial(self._store.deliveries, owner, filter), limit, after)
        return [_shown_delivery(each) for each in page], cursor

    def delivery(self, owner: str | None, delivery_id: str) -> WebhookDelivery:
        """A delivery.

        Args:
            owner: owner whose deliveries the caller may see; None for all.
            delivery_id: id of the delivery.

        Raises:
            DeliveryNotFound: there is no such delivery.
        """
        return _shown_delivery(self._store.delivery(owner, delivery_id))

    def resend(self, owner: str | None, delivery_id: str) -> WebhookDelivery:
        """Send a delivery again, with the same id and all its attempts, whatever became of it before.

        Args:
            owner: owner whose deliveries the caller may see; None for all.
            delivery_id: id of the delivery.

        Raises:
            DeliveryNotFound: there is no such delivery.
            InvalidOption: its endpoint is disabled, or its address was deleted with the texts of its job.
        """
        return _shown_delivery(self._store.send_again(owner, delivery_id, time.time()))

    def secrets_of(self, delivery: Delivery) -> tuple[str, ...]:
        """The secrets that sign a delivery now."""
        pair = self._own_secrets(delivery.owner) if delivery.endpoint is None else delivery.endpoint.secrets
        return pair.valid(time.time())

    def _own_secrets(self, owner: str) -> SecretPair:
        return self._store.signing_secrets(owner, lambda pair: pair or SecretPair(secret=new_secret()))

    def _checked(self, values: EndpointChange) -> dict[str, Any]:
        """The fields of an endpoint that get new values."""
        given = {name: value for name in values.__struct_fields__ if (value := getattr(values, name)) is not UNSET}
        if "url" in given:
            checked_url("url", given["url"], self._private_hosts)
            self._check_host(given["url"])
        if "events" in given:
            given["events"] = tuple(dict.fromkeys(given["events"]))
            if not given["events"]:
                raise InvalidOption("events", f"expected one or more of {', '.join(EVENTS)}")
        if len(given.get("description", "")) > MAX_DESCRIPTION_CHARACTERS:
            raise InvalidOption("description", f"expected at most {MAX_DESCRIPTION_CHARACTERS} characters")
        if given.get("enabled"):
            given["disabled_reason"] = None
        return given

    def _check_host(self, url: str) -> None:
        rules = ConnectRules(LOOKUP_SECONDS, self._private_hosts, lookup_seconds=LOOKUP_SECONDS)
        try:
            Connector(rules).allowed_addresses(*host_of(target_of(url)))
        except NotReachable:
            raise InvalidOption("url", NOT_PUBLIC) from None


def checked_url(field: str, url: str, private_hosts: Collection[str]) -> str:
    """Check the address of a receiver as far as that takes no lookup of a name; each attempt checks all of it.

    Args:
        field: the field that errors name.
        url: the address.
        private_hosts: hosts whose addresses need not be public.

    Returns:
        The address.

    Raises:
        InvalidOption: the server sends nothing there.
    """
    try:
        host, port = host_of(target_of(url))
    except UrlRefused as error:
        raise InvalidOption(field, f"nothing is sent there: {error.reason}") from None
    name = f"[{host}]" if ":" in host else host
    if not {host, name, f"{name}:{port}"}.intersection(private_hosts):
        with contextlib.suppress(ValueError):
            if not is_public(ipaddress.ip_address(host)):
                raise InvalidOption(field, NOT_PUBLIC)
    return url


def _shown_endpoint(endpoint: Endpoint) -> WebhookEndpoint:
    return made_of(endpoint, WebhookEndpoint)


def _shown_secret(pair: SecretPair) -> WebhookSecret:
    signs = pair.previous is not None and pair.previous_until > time.time()
    return WebhookSecret(secret=pair.secret, previous_until=rfc3339(pair.previous_until) if signs else None)


def _shown_delivery(delivery: Delivery) -> WebhookDelivery:
    # Not the address of an endpoint, which is its key's own: an administrator sees deliveries of all keys.
    return made_of(delivery, WebhookDelivery, url=None if delivery.address is None else delivery.address.url)
