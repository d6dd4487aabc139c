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

from whisper_api.errors import DeliveryNotFound, InvalidOption, QueueFull, StorageError, WebhookNotFound
from whisper_api.jobs.webhooks import EndpointChange
from whisper_api.server.auditing import note, noted_id
from whisper_api.server.operations import Answer, Cause, JsonBody, Operation, Parameter
from whisper_api.server.resource import JsonResponse
from whisper_api.server.state import blocking, caller_of, owner_of, reads, service_of, state_of, viewer_of, writes
from whisper_api.server.uploads.receiving import BODY_REFUSALS, received_value
from whisper_api.server.uploads.webhook_fields import OFF, check_webhooks_enabled
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


async def list_all(request: Request) -> Response:
    """List your endpoints. Other keys do not see them."""
    found = await reads(request, service_of(request).webhooks.list, owner_of(request))
    return JsonResponse(EndpointList(webhooks=tuple(found)))


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
    root = request.scope.get("root_path", "")
    return JsonResponse(made, 201, {"Location": f"{root}/webhooks/{made.endpoint_id}"})


async def read(request: Request) -> Response:
    """Read an endpoint."""
    return JsonResponse(await reads(request, service_of(request).webhooks.get, owner_of(request), _id(request)))


async def change(request: Request) -> Response:
    """Change fields of an endpoint, or disable or enable it. Pending deliveries go to the new address."""
    check_webhooks_enabled(state_of(request).config)
    values = await received_value(request, EndpointChange, max_bytes=MAX_BODY_BYTES)
    webhooks, owner, endpoint_id = service_of(request).webhooks, owner_of(request), _id(request)
    return JsonResponse(await _in_turn(request, lambda: webhooks.change(owner, endpoint_id, values)))


async def delete(request: Request) -> Response:
    """Delete an endpoint with its secrets and deliveries."""
    await writes(request, service_of(request).webhooks.delete, owner_of(request), _id(request))
    return Response(status_code=204)


async def secret(request: Request) -> Response:
    """Read the secret of an endpoint."""
    return JsonResponse(await reads(request, service_of(request).webhooks.secret, owner_of(request), _id(request)))


async def rotate(request: Request) -> Response:
    """Make a new secret for an endpoint. For a day, deliveries have a signature of the secret before, too."""
    return JsonResponse(await writes(request, service_of(request).webhooks.rotate, owner_of(request), _id(request)))


async def own_secret(request: Request) -> Response:
    """Read the secret of your key, which signs the deliveries to the `webhook_url` of a job."""
    return JsonResponse(await writes(request, service_of(request).webhooks.secret, owner_of(request)))


async def rotate_own(request: Request) -> Response:
    """Make a new secret for your key. For a day, deliveries have a signature of the secret before, too."""
    return JsonResponse(await writes(request, service_of(request).webhooks.rotate, owner_of(request)))


async def test(request: Request) -> Response:
    """Send the event `webhook.test` to an endpoint, in one attempt. Read the delivery to see what came of it."""
    check_webhooks_enabled(state_of(request).config)
    return JsonResponse(await writes(request, service_of(request).webhooks.test, owner_of(request), _id(request)), 202)


async def deliveries(request: Request) -> Response:
    """List the deliveries of your jobs' events, newest first and page by page; an admin sees those of all callers."""
    filter = DeliveryFilter(state=STATE.of(request), job_id=JOB_ID.of(request), endpoint_id=ENDPOINT.of(request))
    limit, after = LIMIT.of(request), AFTER.of(request)
    webhooks, viewer = service_of(request).webhooks, viewer_of(request)
    page, cursor = await reads(request, lambda: webhooks.deliveries(viewer, filter, limit=limit, after=after))
    return JsonResponse(DeliveryPage(deliveries=tuple(page), next=cursor))


async def delivery(request: Request) -> Response:
    """Read a delivery: its state, the attempts, the last status, and the time of the next attempt."""
    name = request.path_params["delivery_id"]
    return JsonResponse(await reads(request, service_of(request).webhooks.delivery, viewer_of(request), name))


async def resend(request: Request) -> Response:
    """Send a delivery again, whatever became of it before. Its id stays the same, and all attempts begin anew."""
    check_webhooks_enabled(state_of(request).config)
    name = request.path_params["delivery_id"]
    again = await writes(request, service_of(request).webhooks.resend, viewer_of(request), name)
    note(request, again.delivery_id)
    return JsonResponse(again, 202)


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


ENDPOINT_ID = Parameter("endpoint_id", str, "Id of the endpoint", location="path", required=True)
DELIVERY_ID = Parameter("delivery_id", str, "Id of the delivery, `webhook-id`", location="path", required=True)
STATE = Parameter("state", DeliveryState, "Only deliveries in this state")
JOB_ID = Parameter("job_id", str, "Only deliveries of this job")
ENDPOINT = Parameter("endpoint_id", str, "Only deliveries to this endpoint")
LIMIT = Parameter("limit", Annotated[int, Meta(ge=1, le=1000)], "Deliveries on a page", 50)
AFTER = Parameter("after", str, "The cursor `next` of the page before")

SHOWN = Answer(200, "The endpoint", {"application/json": WebhookEndpoint})
SHOWN_SECRET = Answer(200, "The secret", {"application/json": WebhookSecret})
BEGUN = Answer(202, "The delivery, which is sent soon", {"application/json": WebhookDelivery})
BODY: tuple[Cause, ...] = (InvalidOption, OFF, QueueFull, StorageError, *BODY_REFUSALS)
FOUND: tuple[Cause, ...] = (WebhookNotFound, StorageError)

webhook_call = functools.partial(Operation, tag=TAG, scope="webhooks")
LIST = webhook_call(
    list_all,
    (Answer(200, "The endpoints", {"application/json": EndpointList}),),
    refusals=(StorageError,),
    audit="webhook.read",
)
CREATE = webhook_call(
    create,
    (Answer(201, "The endpoint", {"application/json": WebhookEndpoint}, {"Location": "Path of the endpoint"}),),
    refusals=(*BODY, WebhookNotFound),
    body=JsonBody(NewEndpoint),
    audit="webhook.create",
)
READ = webhook_call(read, (SHOWN,), refusals=FOUND, parameters=(ENDPOINT_ID,), audit="webhook.read")
CHANGE = webhook_call(
    change,
    (SHOWN,),
    refusals=(*BODY, WebhookNotFound),
    parameters=(ENDPOINT_ID,),
    body=JsonBody(EndpointChange),
    audit="webhook.change",
)
DELETE = webhook_call(
    delete, (Answer(204, "The endpoint is deleted"),), refusals=FOUND, parameters=(ENDPOINT_ID,), audit="webhook.delete"
)
SECRET = webhook_call(secret, (SHOWN_SECRET,), refusals=FOUND, parameters=(ENDPOINT_ID,), audit="webhook.read")
ROTATE = webhook_call(rotate, (SHOWN_SECRET,), refusals=FOUND, parameters=(ENDPOINT_ID,), audit="webhook.rotate")
OWN_SECRET = webhook_call(own_secret, (SHOWN_SECRET,), refusals=FOUND, audit="webhook.read")
ROTATE_OWN = webhook_call(rotate_own, (SHOWN_SECRET,), refusals=FOUND, audit="webhook.rotate")
TEST = webhook_call(
    test, (BEGUN,), refusals=(*FOUND, InvalidOption, OFF), parameters=(ENDPOINT_ID,), audit="webhook.send"
)
DELIVERIES = webhook_call(
    deliveries,
    (Answer(200, "A page of deliveries", {"application/json": DeliveryPage}),),
    refusals=(InvalidOption, StorageError),
    parameters=(STATE, JOB_ID, ENDPOINT, LIMIT, AFTER),
)
DELIVERY = webhook_call(
    delivery,
    (Answer(200, "The delivery", {"application/json": WebhookDelivery}),),
    refusals=(DeliveryNotFound, StorageError),
    parameters=(DELIVERY_ID,),
)
RESEND = webhook_call(
    resend,
    (BEGUN,),
    refusals=(DeliveryNotFound, InvalidOption, OFF, StorageError),
    parameters=(DELIVERY_ID,),
    audit="webhook.send",
)
