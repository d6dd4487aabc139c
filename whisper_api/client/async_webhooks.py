"""The methods of the asynchronous client for webhooks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from whisper_api.client.async_transport import AsyncMethods
from whisper_api.client.calls import path_of
from whisper_api.client.fields import texts
from whisper_api.client.webhooks import ONCE, DeliveryPage, EndpointList, secret_path, sent_endpoint
from whisper_api.webhooks import DeliveryState, WebhookDelivery, WebhookEndpoint, WebhookEventType, WebhookSecret

__all__ = ["AsyncWebhookMethods"]


class AsyncWebhookMethods(AsyncMethods):
    """The methods of :class:`~whisper_api.AsyncClient` for webhooks; they are those of :class:`~whisper_api.Client`."""

    async def webhooks(self) -> tuple[WebhookEndpoint, ...]:
        """The endpoints of the caller's key, the oldest first.

        Raises:
            RequestError: the server refused, or cannot be reached.
        """
        return (await self._transport.run(self._calls.value("GET", "/webhooks", EndpointList))).webhooks

    async def webhook(self, endpoint_id: str) -> WebhookEndpoint:
        """An endpoint of the caller's key.

        Raises:
            WebhookNotFound: there is no such endpoint, or it belongs to another key.
            RequestError: the server refused, or cannot be reached.
        """
        return await self._transport.run(self._calls.value("GET", path_of("webhooks", endpoint_id), WebhookEndpoint))

    async def create_webhook(
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
        return await self._transport.run(sent_endpoint(ONCE, "POST", "/webhooks", values))

    async def change_webhook(
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
        path, values = path_of("webhooks", endpoint_id), {**values, "enabled": enabled}
        return await self._transport.run(sent_endpoint(self._calls, "PATCH", path, values))

    async def delete_webhook(self, endpoint_id: str) -> None:
        """Delete an endpoint with its secrets and deliveries.

        Raises:
            WebhookNotFound, RequestError: as with :meth:`webhook`.
        """
        await self._transport.run(self._calls.delete(path_of("webhooks", endpoint_id)))

    async def webhook_secret(self, endpoint_id: str | None = None) -> WebhookSecret:
        """The secret that signs deliveries, for :func:`~whisper_api.verify_webhook`.

        Args:
            endpoint_id: id of the endpoint; None for the secret of the caller's key, which signs the deliveries to the
                ``webhook_url`` of a job.

        Raises:
            WebhookNotFound, RequestError: as with :meth:`webhook`.
        """
        return await self._transport.run(self._calls.value("GET", secret_path(endpoint_id), WebhookSecret))

    async def rotate_webhook_secret(self, endpoint_id: str | None = None) -> WebhookSecret:
        """Make a new secret. For a day, deliveries have a signature of the secret before, too.

        Args:
            endpoint_id: as with :meth:`webhook_secret`.

        Raises:
            WebhookNotFound, RequestError: as with :meth:`webhook`.
        """
        return await self._transport.run(ONCE.value("POST", f"{secret_path(endpoint_id)}/rotate", WebhookSecret))

    async def test_webhook(self, endpoint_id: str) -> WebhookDelivery:
        """Send a test event to an endpoint, in one attempt; :meth:`webhook_delivery` says later what came of it.

        Args:
            endpoint_id: id of the endpoint.

        Raises:
            InvalidOption: the endpoint is disabled.
            WebhookNotFound, RequestError: as with :meth:`webhook`.
        """
        path = path_of("webhooks", endpoint_id, "test")
        return await self._transport.run(self._calls.value("POST", path, WebhookDelivery))

    async def webhook_deliveries(
        self, state: DeliveryState | None = None, *, job_id: str | None = None, endpoint_id: str | None = None
    ) -> AsyncGenerator[WebhookDelivery, None]:
        """The deliveries of the events of the caller's jobs, newest first.

        Args:
            state: only deliveries in this state; None for all.
            job_id: only deliveries of this job.
            endpoint_id: only deliveries to this endpoint.

        Raises:
            RequestError: the server refused, or cannot be reached.
        """
        params = texts({"state": state, "job_id": job_id, "endpoint_id": endpoint_id})
        async for page in self._pages("/webhooks/deliveries", DeliveryPage, params):
            for delivery in page.deliveries:
                yield delivery

    async def webhook_delivery(self, delivery_id: str) -> WebhookDelivery:
        """A delivery.

        Raises:
            DeliveryNotFound: there is no such delivery, or it belongs to another key.
            RequestError: the server refused, or cannot be reached.
        """
        path = path_of("webhooks", "deliveries", delivery_id)
        return await self._transport.run(self._calls.value("GET", path, WebhookDelivery))

    async def resend_webhook(self, delivery_id: str) -> WebhookDelivery:
        """Send a delivery again, with the same id and all its attempts.

        Args:
            delivery_id: id of the delivery.

        Raises:
            InvalidOption: its endpoint is disabled, or its address was deleted with the texts of its job.
            DeliveryNotFound, RequestError: as with :meth:`webhook_delivery`.
        """
        path = path_of("webhooks", "deliveries", delivery_id, "resend")
        return await self._transport.run(self._calls.value("POST", path, WebhookDelivery))
