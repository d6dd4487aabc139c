"""``/webhooks``: endpoints that get the events of the caller's jobs, their secrets, and the deliveries."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta
from msgspec.structs import asdict
from starlette.requests import Request
from starlette.responses import Response

from whisper_api.errors import DeliveryNotFound, InvalidOption, QueueFull, WebhookNotFound
from whisper_api.jobs.webhooks import EndpointChange
from whisper_api.server.auditing import note, noted_id
from whisper_api.server.operations import Answer, JsonBody, Parameter, created, operation
from whisper_api.server.state import blocking, caller_of, owner_of, service_of, state_of, viewer_of
from whisper_api.server.uploads.forms import OFF, check_webhooks_enabled
from whisper_api.server.uploads.receiving import received_value
from whisper_api.store.deliveries import DeliveryFilter
from whisper_api.webhooks import (
    DeliveryPage,
    DeliveryState,
    EndpointList,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEventType,
    WebhookSecret,
)

T = TypeVar("T")

TAG = "Webhooks"
MAX_BODY_BYTES = 64 << 10
# A change of an address waits this long for its turn to look up the name.
TURN_SECONDS = 30.0


class NewEndpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new endpoint.

    Attributes:
        url: where deliveries are sent; http or https.
        events: types of the events that are sent; absent for all.
        include_result: whether the event of a Completed job carries the result.
        description: a note for people.
    """

    url: Annotated[str, Meta(examples=["https://example.com/whisper"])]
    events: tuple[WebhookEventType, ...] | msgspec.UnsetType = msgspec.UNSET
    include_result: bool = False
    description: Annotated[str, Meta(max_length=255)] = ""


ENDPOINT_ID = Parameter(
    "endpoint_id", str, "Id of the endpoint", location="path", required=True, refusals=(WebhookNotFound,)
)
DELIVERY_ID = Parameter(
    "delivery_id",
    str,
    "Id of the delivery, `webhook-id`",
    location="path",
    required=True,
    refusals=(DeliveryNotFound,),
)
STATE = Parameter("state", DeliveryState, "Only deliveries in this state")
JOB_ID = Parameter("job_id", str, "Only deliveries of this job")
ENDPOINT = Parameter("endpoint_id", str, "Only deliveries to this endpoint")
LIMIT = Parameter("limit", Annotated[int, Meta(ge=1, le=1000)], "Deliveries on a page", 50)
AFTER = Parameter("after", str, "The cursor `next` of the page before")
BEGUN = Answer(202, "The delivery, which is sent soon", {"application/json": WebhookDelivery})

webhook_call = functools.partial(operation, tag=TAG, scope="webhooks")
of_endpoint = functools.partial(webhook_call, parameters=(ENDPOINT_ID,))


@webhook_call("The endpoints", audit="webhook.read")
def list_all(request: Request) -> EndpointList:
    """List your endpoints. Other keys do not see them."""
    return EndpointList(webhooks=tuple(service_of(request).webhooks.list(owner_of(request))))


@webhook_call(
    Answer(201, "The endpoint", {"application/json": WebhookEndpoint}, {"Location": "Path of the endpoint"}),
    refusals=(OFF, QueueFull, WebhookNotFound),
    body=JsonBody(NewEndpoint),
    audit="webhook.create",
)
async def create(request: Request) -> Response:
    """Make an endpoint, which gets the events of all later jobs of your key: completed, failed and canceled ones.

    Deliveries are signed as Standard Webhooks describes it, with a secret of the endpoint's own. A delivery that is not
    answered with a status of 2xx is tried again for about three days. Redirects are not followed, 429 and `Retry-After`
    are heeded, and 410 disables the endpoint.
    """
    check_webhooks_enabled(state_of(request).config)
    values = await received_value(request, NewEndpoint, max_bytes=MAX_BODY_BYTES)
    service = service_of(request)
    others = EndpointChange(**{name: value for name, value in asdict(values).items() if name != "url"})
    made = await _in_turn(request, lambda: service.webhooks.create(owner_of(request), values.url, others))
    note(request, made.endpoint_id)
    return created(request, made, f"/webhooks/{made.endpoint_id}")


@of_endpoint("The endpoint", audit="webhook.read")
def read(request: Request) -> WebhookEndpoint:
    """Read an endpoint."""
    return service_of(request).webhooks.get(owner_of(request), _id(request))


@of_endpoint("The endpoint", refusals=(OFF, QueueFull), body=JsonBody(EndpointChange), audit="webhook.change")
async def change(request: Request) -> WebhookEndpoint:
    """Change fields of an endpoint, or disable or enable it. Pending deliveries go to the new address."""
    check_webhooks_enabled(state_of(request).config)
    values = await received_value(request, EndpointChange, max_bytes=MAX_BODY_BYTES)
    webhooks, owner, endpoint_id = service_of(request).webhooks, owner_of(request), _id(request)
    return await _in_turn(request, lambda: webhooks.change(owner, endpoint_id, values))


@of_endpoint("The endpoint is deleted", audit="webhook.delete")
def delete(request: Request) -> None:
    """Delete an endpoint with its secrets and deliveries."""
    service_of(request).webhooks.delete(owner_of(request), _id(request))


@of_endpoint("The secret", audit="webhook.read")
def secret(request: Request) -> WebhookSecret:
    """Read the secret of an endpoint."""
    return service_of(request).webhooks.secret(owner_of(request), _id(request))


@of_endpoint("The secret", audit="webhook.rotate")
def rotate(request: Request) -> WebhookSecret:
    """Make a new secret for an endpoint. For a day, deliveries have a signature of the secret before, too."""
    return service_of(request).webhooks.rotate(owner_of(request), _id(request))


@webhook_call("The secret", refusals=(WebhookNotFound,), audit="webhook.read")
def own_secret(request: Request) -> WebhookSecret:
    """Read the secret of your key, which signs the deliveries to the `webhook_url` of a job."""
    return service_of(request).webhooks.secret(owner_of(request))


@webhook_call("The secret", refusals=(WebhookNotFound,), audit="webhook.rotate")
def rotate_own(request: Request) -> WebhookSecret:
    """Make a new secret for your key. For a day, deliveries have a signature of the secret before, too."""
    return service_of(request).webhooks.rotate(owner_of(request))


@of_endpoint(BEGUN, refusals=(InvalidOption, OFF), audit="webhook.send")
def test(request: Request) -> WebhookDelivery:
    """Send the event `webhook.test` to an endpoint, in one attempt. Read the delivery to see what came of it."""
    check_webhooks_enabled(state_of(request).config)
    return service_of(request).webhooks.test(owner_of(request), _id(request))


@webhook_call("A page of deliveries", parameters=(STATE, JOB_ID, ENDPOINT, LIMIT, AFTER))
def deliveries(request: Request) -> DeliveryPage:
    """List the deliveries of your jobs' events, newest first and page by page; an admin sees those of all callers."""
    filter = DeliveryFilter(state=STATE.of(request), job_id=JOB_ID.of(request), endpoint_id=ENDPOINT.of(request))
    webhooks, limit, after = service_of(request).webhooks, LIMIT.of(request), AFTER.of(request)
    page, cursor = webhooks.deliveries(viewer_of(request), filter, limit=limit, after=after)
    return DeliveryPage(deliveries=tuple(page), next=cursor)


@webhook_call("The delivery", parameters=(DELIVERY_ID,))
def delivery(request: Request) -> WebhookDelivery:
    """Read a delivery: its state, the attempts, the last status, and the time of the next attempt."""
    return service_of(request).webhooks.delivery(viewer_of(request), request.path_params["delivery_id"])


@webhook_call(BEGUN, refusals=(InvalidOption, OFF), parameters=(DELIVERY_ID,), audit="webhook.send")
def resend(request: Request) -> WebhookDelivery:
    """Send a delivery again, whatever became of it before. Its id stays the same, and all attempts begin anew."""
    check_webhooks_enabled(state_of(request).config)
    again = service_of(request).webhooks.resend(viewer_of(request), request.path_params["delivery_id"])
    note(request, again.delivery_id)
    return again


async def _in_turn(request: Request, work: Callable[[], T]) -> T:
    """Look up a name in a thread for such waits: a few at a time for each caller, as when files are fetched."""
    state = state_of(request)
    try:
        async with state.caller_fetches.taken(caller_of(request), TURN_SECONDS):
            return await blocking(state.fetches, work)
    except asyncio.TimeoutError:
        raise QueueFull("Too many other addresses are being looked up: try again later", TURN_SECONDS) from None


def _id(request: Request) -> str:
    return noted_id(request, "endpoint_id", lambda text: WebhookNotFound(f"Webhook endpoint not found: {text[:64]}"))
