"""The methods of the asynchronous client for webhooks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from whisper_api.client.async_transport import AsyncTransport
from whisper_api.client.calls import Calls
from whisper_api.client.webhooks import WebhookCalls, delivery_search
from whisper_api.webhooks import DeliveryState, WebhookDelivery, WebhookEndpoint, WebhookEventType, WebhookSecret

__all__ = ["AsyncWebhookMethods"]


class AsyncWebhookMethods:
    """The methods of :class:`~whisper_api.AsyncClient` for webhooks; they are those of :class:`~whisper_api.Client`."""

    _calls: Calls
    _transport: AsyncTransport

    @property
    def _webhooks(self) -> WebhookCalls:
        return WebhookCalls(self._calls)

    async def webhooks(self) -> tuple[WebhookEndpoint, ...]:
        """The endpoints of the caller's key, the oldest first.

        Raises:
            RequestError: the server refused, or cannot be reached.
        """
        return await self._transport.run(self._webhooks.endpoints())

    async def webhook(self, endpoint_id: str) -> WebhookEndpoint:
        """An endpoint of the caller's key.

        Raises:
            WebhookNotFound: there is no such endpoint, or it belongs to another key.
            RequestError: the server refused, or cannot be reached.
        """
        return await self._transport.run(self._webhooks.endpoint(endpoint_id))

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
        return await self._transport.run(self._webhooks.create(values))

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
        return await self._transport.run(self._webhooks.change(endpoint_id, {**values, "enabled": enabled}))

    async def delete_webhook(self, endpoint_id: str) -> None:
        """Delete an endpoint with its secrets and deliveries.

        Raises:
            WebhookNotFound, RequestError: as with :meth:`webhook`.
        """
        await self._transport.run(self._webhooks.delete(endpoint_id))

    async def webhook_secret(self, endpoint_id: str | None = None) -> WebhookSecret:
        """The secret that signs deliveries, for :func:`~whisper_api.verify_webhook`.

        Args:
            endpoint_id: id of the endpoint; None for the secret of the caller's key, which signs the deliveries to the
                ``webhook_url`` of a job.

        Raises:
            WebhookNotFound, RequestError: as with :meth:`webhook`.
        """
        return await self._transport.run(self._webhooks.secret(endpoint_id, rotate=False))

    async def rotate_webhook_secret(self, endpoint_id: str | None = None) -> WebhookSecret:
        """Make a new secret. For a day, deliveries have a signature of the secret before, too.

        Args:
            endpoint_id: as with :meth:`webhook_secret`.

        Raises:
            WebhookNotFound, RequestError: as with :meth:`webhook`.
        """
        return await self._transport.run(self._webhooks.secret(endpoint_id, rotate=True))

    async def test_webhook(self, endpoint_id: str) -> WebhookDelivery:
        """Send a test event to an endpoint, in one attempt; :meth:`webhook_delivery` says later what came of it.

        Args:
            endpoint_id: id of the endpoint.

        Raises:
            InvalidOption: the endpoint is disabled.
            WebhookNotFound, RequestError: as with :meth:`webhook`.
        """
        return await self._transport.run(self._webhooks.test(endpoint_id))

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
        params = delivery_search(state, job_id, endpoint_id)
        while True:
            page = await self._transport.run(self._webhooks.page(params))
            for delivery in page.deliveries:
                yield delivery
            if page.next is None:
                return
            params["after"] = page.next

    async def webhook_delivery(self, delivery_id: str) -> WebhookDelivery:
        """A delivery.

        Raises:
            DeliveryNotFound: there is no such delivery, or it belongs to another key.
            RequestError: the server refused, or cannot be reached.
        """
        return await self._transport.run(self._webhooks.delivery(delivery_id))

    async def resend_webhook(self, delivery_id: str) -> WebhookDelivery:
        """Send a delivery again, with the same id and all its attempts.

        Args:
            delivery_id: id of the delivery.

        Raises:
            InvalidOption: its endpoint is disabled, or its address was deleted with the texts of its job.
            DeliveryNotFound, RequestError: as with :meth:`webhook_delivery`.
        """
        return await self._transport.run(self._webhooks.resend(delivery_id))
