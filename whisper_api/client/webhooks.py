"""The methods of the clients for webhooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whisper_api.client.calls import Calls, Methods, Pages, Steps, api_call, api_list, path_of
from whisper_api.client.fields import texts
from whisper_api.webhooks import (
    DeliveryPage,
    DeliveryState,
    EndpointList,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEventType,
    WebhookSecret,
)

# For requests that a second attempt would do twice.
ONCE = Calls(0)
# Seconds that the server may take to look up the name of a host.
LOOKUP_SECONDS = 60.0


class WebhookMethods(Methods):
    """The methods of the clients for webhooks."""

    @api_call
    def webhooks(self) -> Steps[tuple[WebhookEndpoint, ...]]:
        """The endpoints of the caller's key, the oldest first.

        Raises:
            RequestError: the server refused, or cannot be reached.
        """
        return (yield from self._calls.value("GET", "/webhooks", EndpointList)).webhooks

    @api_call
    def webhook(self, endpoint_id: str) -> Steps[WebhookEndpoint]:
        """An endpoint of the caller's key.

        Raises:
            WebhookNotFound: there is no such endpoint, or it belongs to another key.
            RequestError: the server refused, or cannot be reached.
        """
        return self._calls.value("GET", path_of("webhooks", endpoint_id), WebhookEndpoint)

    @api_call
    def create_webhook(
        self,
        url: str,
        *,
        events: Sequence[WebhookEventType] | None = None,
        include_result: bool = False,
        description: str = "",
    ) -> Steps[WebhookEndpoint]:
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
        return _sent_endpoint(ONCE, "POST", "/webhooks", values)

    @api_call
    def change_webhook(
        self,
        endpoint_id: str,
        *,
        url: str | None = None,
        events: Sequence[WebhookEventType] | None = None,
        include_result: bool | None = None,
        description: str | None = None,
        enabled: bool | None = None,
    ) -> Steps[WebhookEndpoint]:
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
        path, values = path_of("webhooks", endpoint_id), {**values, "enabled": enabled}
        return _sent_endpoint(self._calls, "PATCH", path, values)

    @api_call
    def delete_webhook(self, endpoint_id: str) -> Steps[None]:
        """Delete an endpoint with its secrets and deliveries.

        Raises:
            WebhookNotFound, RequestError: as with :meth:`webhook`.
        """
        return self._calls.delete(path_of("webhooks", endpoint_id))

    @api_call
    def webhook_secret(self, endpoint_id: str | None = None) -> Steps[WebhookSecret]:
        """The secret that signs deliveries, for :func:`~whisper_api.verify_webhook`.

        Args:
            endpoint_id: id of the endpoint; None for the secret of the caller's key, which signs the deliveries to the
                ``webhook_url`` of a job.

        Raises:
            WebhookNotFound, RequestError: as with :meth:`webhook`.
        """
        return self._calls.value("GET", _secret_path(endpoint_id), WebhookSecret)

    @api_call
    def rotate_webhook_secret(self, endpoint_id: str | None = None) -> Steps[WebhookSecret]:
        """Make a new secret. For a day, deliveries have a signature of the secret before, too.

        Args:
            endpoint_id: as with :meth:`webhook_secret`.

        Raises:
            WebhookNotFound, RequestError: as with :meth:`webhook`.
        """
        return ONCE.value("POST", f"{_secret_path(endpoint_id)}/rotate", WebhookSecret)

    @api_call
    def test_webhook(self, endpoint_id: str) -> Steps[WebhookDelivery]:
        """Send a test event to an endpoint, in one attempt; :meth:`webhook_delivery` says later what came of it.

        Args:
            endpoint_id: id of the endpoint.

        Raises:
            InvalidOption: the endpoint is disabled.
            WebhookNotFound, RequestError: as with :meth:`webhook`.
        """
        path = path_of("webhooks", endpoint_id, "test")
        return self._calls.value("POST", path, WebhookDelivery)

    @api_list
    def webhook_deliveries(
        self, state: DeliveryState | None = None, *, job_id: str | None = None, endpoint_id: str | None = None
    ) -> Pages[WebhookDelivery]:
        """The deliveries of the events of the caller's jobs, newest first.

        Args:
            state: only deliveries in this state; None for all.
            job_id: only deliveries of this job.
            endpoint_id: only deliveries to this endpoint.

        Raises:
            RequestError: the server refused, or cannot be reached.
        """
        params = texts({"state": state, "job_id": job_id, "endpoint_id": endpoint_id})
        return self._calls.pages("/webhooks/deliveries", DeliveryPage, params, lambda page: page.deliveries)

    @api_call
    def webhook_delivery(self, delivery_id: str) -> Steps[WebhookDelivery]:
        """A delivery.

        Raises:
            DeliveryNotFound: there is no such delivery, or it belongs to another key.
            RequestError: the server refused, or cannot be reached.
        """
        path = path_of("webhooks", "deliveries", delivery_id)
        return self._calls.value("GET", path, WebhookDelivery)

    @api_call
    def resend_webhook(self, delivery_id: str) -> Steps[WebhookDelivery]:
        """Send a delivery again, with the same id and all its attempts.

        Args:
            delivery_id: id of the delivery.

        Raises:
            InvalidOption: its endpoint is disabled, or its address was deleted with the texts of its job.
            DeliveryNotFound, RequestError: as with :meth:`webhook_delivery`.
        """
        path = path_of("webhooks", "deliveries", delivery_id, "resend")
        return self._calls.value("POST", path, WebhookDelivery)


def _sent_endpoint(calls: Calls, method: str, path: str, values: dict[str, Any]) -> Steps[WebhookEndpoint]:
    """Send the fields of an endpoint.

    Args:
        calls: sends the request.
        method: method of the request.
        path: path of the request.
        values: the fields; None leaves a field out.
    """
    given = {name: value for name, value in values.items() if value is not None}
    return calls.value(method, path, WebhookEndpoint, given, held_seconds=LOOKUP_SECONDS)


def _secret_path(endpoint_id: str | None) -> str:
    """The path of the secret of an endpoint; for None, of the key's own secret."""
    return "/webhooks/secret" if endpoint_id is None else path_of("webhooks", endpoint_id, "secret")
