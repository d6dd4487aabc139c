"""The bodies of webhook deliveries, made at each attempt from what the store has then."""

from __future__ import annotations

import threading

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from whisper_api.formats import rendered
from whisper_api.job_values import JobResult, job_result
from whisper_api.jobs.corrections import corrected
from whisper_api.records import rfc3339
from whisper_api.store.deliveries import EVENT_OF, Delivery
from whisper_api.store.jobs import JobStore
from whisper_api.webhooks import WebhookData, WebhookEvent

__all__ = ["MAX_RESULT_BYTES", "Bodies"]

# Receivers often take no larger bodies.
MAX_RESULT_BYTES = 1 << 20
STATE_OF = {str(event): state for state, event in EVENT_OF.items()}


class Bodies:
    """Makes the bodies of deliveries.

    Args:
        store: the store of jobs and results.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store
        # Held while a result is rendered, which takes several times its size.
        self._rendering = threading.Lock()

    def body_of(self, delivery: Delivery) -> bytes:
        """The body of a delivery, as JSON.

        Args:
            delivery: the delivery.

        Raises:
            StorageError: the result cannot be read.
        """
        if delivery.job_id is None:
            return self._encoded(delivery, WebhookData(endpoint_id=delivery.endpoint_id or UNSET))
        state, path = STATE_OF[delivery.type], f"/transcription/{delivery.job_id}"
        data = WebhookData(job_id=delivery.job_id, status=state, status_url=path)
        if state == "Completed":
            data = replace(data, result_url=f"{path}/result")
        if state != "Completed" or not delivery.include_result:
            return self._encoded(delivery, data)
        with self._rendering:
            result = self._result(delivery.job_id)
            if result is None:
                return self._encoded(delivery, replace(data, result_omitted="gone"))
            body = self._encoded(delivery, replace(data, result=result))
        if len(body) > MAX_RESULT_BYTES:
            return self._encoded(delivery, replace(data, result_omitted="too_large"))
        return body

    def _encoded(self, delivery: Delivery, data: WebhookData) -> bytes:
        return msgspec.json.encode(WebhookEvent(type=delivery.type, timestamp=rfc3339(delivery.created_at), data=data))

    def _result(self, job_id: str) -> JobResult | None:
        job, found = self._store.get(job_id), self._store.result(job_id)
        if job is None or found is None:
            return None
        transcript = corrected(*found)
        text, warnings = rendered(transcript, job.output_format, job.render_options)
        return job_result(transcript, text, (*job.warnings, *warnings), job.metadata)
