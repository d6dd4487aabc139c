"""Webhooks in the clients: their calls, and the methods of the blocking client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from whisper_api.client.calls import Calls, Request, Steps
from whisper_api.client.responses import decoded
from whisper_api.client.transport import Transport
from whisper_api.webhooks import DeliveryState, WebhookDelivery, WebhookEndpoint, WebhookEventType, WebhookSecret

__all__ = ["DeliveryPage", "WebhookCalls", "WebhookMethods", "delivery_search"]

# Seconds that the server may take to look up the name of a host.
LOOKUP_SECONDS = 60.0


class DeliveryPage(msgspec.Struct):
    """A page of deliveries, and the cursor of the next page."""

    deliveries: tuple[WebhookDelivery, ...]
    next: str | None = None


class _Endpoints(msgspec.Struct):
    webhooks: tuple[WebhookEndpoint, ...]


class WebhookCalls:
    """The calls about webhooks, for one client.

    Args:
        calls: sends the requests.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        # For requests that a second attempt would do twice.
        self._once = Calls(0)

    def endpoints(self) -> Steps[tuple[WebhookEndpoint, ...]]:
        """All endpoints of the caller."""
        response = yield from self._calls.response(Request("GET", "/webhooks"))
        return decoded(response, _Endpoints).webhooks

    def endpoint(self, endpoint_id: str) -> Steps[WebhookEndpoint]:
        """An endpoint."""
        response = yield from self._calls.response(Request("GET", _path(endpoint_id)))
        return decoded(response, WebhookEndpoint)

    def create(self, values: dict[str, Any]) -> Steps[WebhookEndpoint]:
        """Make an endpoint with these fields; None leaves a field out."""
        response = yield from self._once.response(_with_body("POST", "/webhooks", values))
        return decoded(response, WebhookEndpoint)

    def change(self, endpoint_id: str, values: dict[str, Any]) -> Steps[WebhookEndpoint]:
        """Change an endpoint.

        Args:
            endpoint_id: id of the endpoint.
            values: the new values; None leaves a field out.
        """
        response = yield from self._calls.response(_with_body("PATCH", _path(endpoint_id), values))
        return decoded(response, WebhookEndpoint)

    def delete(self, endpoint_id: str) -> Steps[None]:
        """Delete an endpoint."""
        yield from self._calls.response(Request("DELETE", _path(endpoint_id)))

    def secret(self, endpoint_id: str | None, *, rotate: bool) -> Steps[WebhookSecret]:
        """A secret.

        Args:
            endpoint_id: id of the endpoint; None for the key's own secret.
            rotate: make a new one.
        """
        path = f"{'/webhooks' if endpoint_id is None else _path(endpoint_id)}/secret"
        if rotate:
            response = yield from self._once.response(Request("POST", f"{path}/rotate"))
        else:
            response = yield from self._calls.response(Request("GET", path))
        return decoded(response, WebhookSecret)

    def test(self, endpoint_id: str) -> Steps[WebhookDelivery]:
        """Send a test event to an endpoint."""
        response = yield from self._calls.response(Request("POST", f"{_path(endpoint_id)}/test"))
        return decoded(response, WebhookDelivery)

    def page(self, params: dict[str, str]) -> Steps[DeliveryPage]:
        """A page of deliveries, for the query of :func:`delivery_search`."""
        response = yield from self._calls.response(Request("GET", "/webhooks/deliveries", params=params))
        return decoded(response, DeliveryPage)

    def delivery(self, delivery_id: str) -> Steps[WebhookDelivery]:
        """A delivery."""
        response = yield from self._calls.response(Request("GET", _delivery_path(delivery_id)))
        return decoded(response, WebhookDelivery)

    def resend(self, delivery_id: str) -> Steps[WebhookDelivery]:
        """Send a delivery again."""
        response = yield from self._calls.response(Request("POST", f"{_delivery_path(delivery_id)}/resend"))
        return decoded(response, WebhookDelivery)


class WebhookMethods:
    """The methods of :class:`~whisper_api.Client` for webhooks."""

    _calls: Calls
    _transport: Transport

    @property
    def _webhooks(self) -> WebhookCalls:
        return WebhookCalls(self._calls)

    def webhooks(self) -> tuple[WebhookEndpoint, ...]:
        """The endpoints of the caller's key, the oldest first.

        Raises:
            RequestError: the server refused, or cannot be reached.
        """
        return self._transport.run(self._webhooks.endpoints())

    def webhook(self, endpoint_id: str) -> WebhookEndpoint:
        """An endpoint of the caller's key.

        Raises:
            WebhookNotFound: there is no such endpoint, or it belongs to another key.
            RequestError: the server refused, or cannot be reached.
        """
        return self._transport.run(self._webhooks.endpoint(endpoint_id))

    def create_webhook(
        self,
        url: str,
        *,
        events: Sequence[WebhookEventType] | None = None,
        include_result: bool = False,
        description: str = "",
    ) -> WebhookEndpoint:
        """Make an endpoint, which gets the events of all later jobs of the caller's key.

        Args:
            url: where deliveries are sent.
            events: types of the events that are sent; None for all.
            include_result: let the event of a Completed job carry the result.
            description: a note for people.

        Raises:
            InvalidOption: a value cannot be used, nothing is sent to this address, or there are too many endpoints.
            RequestError: the server refused, or cannot be reached.
        """
        values = {"url": url, "events": events, "include_result": include_result, "description": description}
        return self._transport.run(self._webhooks.create(values))

    def change_webhook(
        self,
        endpoint_id: str,
        *,
        url: str | None = None,
        events: Sequence[WebhookEventType] | None = None,
        include_result: bool | None = None,
        description: str | None = None,
        enabled: bool | None = None,
    ) -> WebhookEndpoint:
        """Change an endpoint; what is None stays.

        Args:
            endpoint_id: id of the endpoint.
            url: as with :meth:`create_webhook`.
            events: as with :meth:`create_webhook`.
            include_result: as with :meth:`create_webhook`.
            description: as with :meth:`create_webhook`.
            enabled: whether events are sent.

        Raises:
            WebhookNotFound: there is no such endpoint, or it belongs to another key.
            InvalidOption, RequestError: as with :meth:`create_webhook`.
        """
        values = {"url": url, "events": events, "include_result": include_result, "description": description}
        return self._transport.run(self._webhooks.change(endpoint_id, {**values, "enabled": enabled}))

    def delete_webhook(self, endpoint_id: str) -> None:
        """Delete an endpoint with its secrets and deliveries.

        Raises:
            WebhookNotFound, RequestError: as with :meth:`webhook`.
        """
        self._transport.run(self._webhooks.delete(endpoint_id))

    def webhook_secret(self, endpoint_id: str | None = None) -> WebhookSecret:
        """The secret that signs deliveries, for :func:`~whisper_api.verify_webhook`.

        Args:
            endpoint_id: id of the endpoint; None for the secret of the caller's key, which signs the deliveries to the
                ``webhook_url`` of a job.

        Raises:
            WebhookNotFound, RequestError: as with :meth:`webhook`.
        """
        return self._transport.run(self._webhooks.secret(endpoint_id, rotate=False))

    def rotate_webhook_secret(self, endpoint_id: str | None = None) -> WebhookSecret:
        """Make a new secret. For a day, deliveries have a signature of the secret before, too.

        Args:
            endpoint_id: as with :meth:`webhook_secret`.

        Raises:
            WebhookNotFound, RequestError: as with :meth:`webhook`.
        """
        return self._transport.run(self._webhooks.secret(endpoint_id, rotate=True))

    def test_webhook(self, endpoint_id: str) -> WebhookDelivery:
        """Send a test event to an endpoint, in one attempt; :meth:`webhook_delivery` says later what came of it.

        Args:
            endpoint_id: id of the endpoint.

        Raises:
            InvalidOption: the endpoint is disabled.
            WebhookNotFound, RequestError: as with :meth:`webhook`.
        """
        return self._transport.run(self._webhooks.test(endpoint_id))

    def webhook_deliveries(
        self, state: DeliveryState | None = None, *, job_id: str | None = None, endpoint_id: str | None = None
    ) -> Iterator[WebhookDelivery]:
        """The deliveries of the events of the caller's jobs, newest first.

        Args:
            state: only deliveries in this state; None for all.
            job_id: only deliveries of this job.
            endpoint_id: only deliveries to this endpoint.

        Raises:
            RequestError: the server refused, or cannot be reached.
        """
        params = delivery_search(state, job_id, endpoint_id)
        while True:
            page = self._transport.run(self._webhooks.page(params))
            yield from page.deliveries
            if page.next is None:
                return
            params["after"] = page.next

    def webhook_delivery(self, delivery_id: str) -> WebhookDelivery:
        """A delivery.

        Raises:
            DeliveryNotFound: there is no such delivery, or it belongs to another key.
            RequestError: the server refused, or cannot be reached.
        """
        return self._transport.run(self._webhooks.delivery(delivery_id))

    def resend_webhook(self, delivery_id: str) -> WebhookDelivery:
        """Send a delivery again, with the same id and all its attempts.

        Args:
            delivery_id: id of the delivery.

        Raises:
            InvalidOption: its endpoint is disabled, or its address was deleted with the texts of its job.
            DeliveryNotFound, RequestError: as with :meth:`webhook_delivery`.
        """
        return self._transport.run(self._webhooks.resend(delivery_id))


def delivery_search(state: DeliveryState | None, job_id: str | None, endpoint_id: str | None) -> dict[str, str]:
    """The query of a search for deliveries.

    Args:
        state: only deliveries in this state.
        job_id: only deliveries of this job.
        endpoint_id: only deliveries to this endpoint.
    """
    query = {"state": state, "job_id": job_id, "endpoint_id": endpoint_id}
    return {name: value for name, value in query.items() if value is not None}


def _with_body(method: str, path: str, values: dict[str, Any]) -> Request:
    headers = {"Content-Type": "application/json"}
    body = msgspec.json.encode({name: value for name, value in values.items() if value is not None})
    return Request(method, path, headers=headers, body=body, held_seconds=LOOKUP_SECONDS)


def _path(endpoint_id: str) -> str:
    return f"/webhooks/{quote(endpoint_id, safe='')}"


def _delivery_path(delivery_id: str) -> str:
    return f"/webhooks/deliveries/{quote(delivery_id, safe='')}"
