"""``/webhooks``: endpoints that get the events of the caller's jobs, their secrets, and the deliveries."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta
from msgspec.structs import asdict
from starlette.requests import Request
from starlette.responses import Response

from whisper_api.errors import DeliveryNotFound, InvalidOption, QueueFull, StorageError, WebhookNotFound
from whisper_api.jobs.webhooks import EndpointChange
from whisper_api.server.auditing import note
from whisper_api.server.operations import Answer, Cause, JsonBody, Operation, Parameter
from whisper_api.server.resource import JsonResponse
from whisper_api.server.state import blocking, caller_of, owner_of, state_of, viewer_of
from whisper_api.server.uploads.json_body import BODY_REFUSALS, decoded
from whisper_api.server.uploads.receiving import received_body
from whisper_api.server.uploads.webhook_fields import OFF, check_webhooks_enabled
from whisper_api.store.deliveries import DeliveryFilter
from whisper_api.webhooks import DeliveryState, WebhookDelivery, WebhookEndpoint, WebhookEventType, WebhookSecret

__all__ = [
    *("CHANGE", "CREATE", "DELETE", "DELIVERIES", "DELIVERY", "LIST", "OWN_SECRET", "READ", "RESEND", "ROTATE"),
    *("ROTATE_OWN", "SECRET", "TEST"),
]

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


class EndpointList(msgspec.Struct, frozen=True, kw_only=True):
    """The endpoints of a caller.

    Attributes:
        webhooks: the oldest first.
    """

    webhooks: tuple[WebhookEndpoint, ...]


class DeliveryPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of deliveries.

    Attributes:
        deliveries: the newest first.
        next: the cursor ``after`` for the next page; None on the last page.
    """

    deliveries: tuple[WebhookDelivery, ...]
    next: str | None


async def list_all(request: Request) -> Response:
    """List your endpoints. Other keys do not see them."""
    state = state_of(request)
    found = await blocking(state.reads, state.service.webhooks.list, owner_of(request))
    return JsonResponse(EndpointList(webhooks=tuple(found)))


async def create(request: Request) -> Response:
    """Make an endpoint, which gets the events of all later jobs of your key: completed, failed and canceled ones.

    Deliveries are signed as Standard Webhooks describes it, with a secret of the endpoint's own. A delivery that is not
    answered with a status of 2xx is tried again for about three days. Redirects are not followed, 429 and `Retry-After`
    are heeded, and 410 disables the endpoint.
    """
    check_webhooks_enabled(state_of(request).config)
    values = decoded(await _body(request), NewEndpoint)
    service = state_of(request).service
    others = EndpointChange(**{name: value for name, value in asdict(values).items() if name != "url"})
    made = await _in_turn(request, lambda: service.webhooks.create(owner_of(request), values.url, others))
    note(request, made.endpoint_id)
    root = request.scope.get("root_path", "")
    return JsonResponse(made, 201, {"Location": f"{root}/webhooks/{made.endpoint_id}"})


async def read(request: Request) -> Response:
    """Read an endpoint."""
    state = state_of(request)
    return JsonResponse(await blocking(state.reads, state.service.webhooks.get, owner_of(request), _id(request)))


async def change(request: Request) -> Response:
    """Change fields of an endpoint, or disable or enable it. Pending deliveries go to the new address."""
    check_webhooks_enabled(state_of(request).config)
    values = decoded(await _body(request), EndpointChange)
    webhooks, owner, endpoint_id = state_of(request).service.webhooks, owner_of(request), _id(request)
    return JsonResponse(await _in_turn(request, lambda: webhooks.change(owner, endpoint_id, values)))


async def delete(request: Request) -> Response:
    """Delete an endpoint with its secrets and deliveries."""
    state = state_of(request)
    await blocking(state.uploads, state.service.webhooks.delete, owner_of(request), _id(request))
    return Response(status_code=204)


async def secret(request: Request) -> Response:
    """Read the secret of an endpoint."""
    state = state_of(request)
    return JsonResponse(await blocking(state.reads, state.service.webhooks.secret, owner_of(request), _id(request)))


async def rotate(request: Request) -> Response:
    """Make a new secret for an endpoint. For a day, deliveries have a signature of the secret before, too."""
    state = state_of(request)
    return JsonResponse(await blocking(state.uploads, state.service.webhooks.rotate, owner_of(request), _id(request)))


async def own_secret(request: Request) -> Response:
    """Read the secret of your key, which signs the deliveries to the `webhook_url` of a job."""
    state = state_of(request)
    return JsonResponse(await blocking(state.uploads, state.service.webhooks.secret, owner_of(request)))


async def rotate_own(request: Request) -> Response:
    """Make a new secret for your key. For a day, deliveries have a signature of the secret before, too."""
    state = state_of(request)
    return JsonResponse(await blocking(state.uploads, state.service.webhooks.rotate, owner_of(request)))


async def test(request: Request) -> Response:
    """Send the event `webhook.test` to an endpoint, in one attempt. Read the delivery to see what came of it."""
    state = state_of(request)
    check_webhooks_enabled(state.config)
    made = await blocking(state.uploads, state.service.webhooks.test, owner_of(request), _id(request))
    return JsonResponse(made, 202)


async def deliveries(request: Request) -> Response:
    """List the deliveries of your jobs' events, newest first and page by page; an admin sees those of all callers."""
    state = state_of(request)
    filter = DeliveryFilter(state=STATE.of(request), job_id=JOB_ID.of(request), endpoint_id=ENDPOINT.of(request))
    limit, after = LIMIT.of(request), AFTER.of(request)
    webhooks, viewer = state.service.webhooks, viewer_of(request)
    page, cursor = await blocking(state.reads, lambda: webhooks.deliveries(viewer, filter, limit=limit, after=after))
    return JsonResponse(DeliveryPage(deliveries=tuple(page), next=cursor))


async def delivery(request: Request) -> Response:
    """Read a delivery: its state, the attempts, the last status, and the time of the next attempt."""
    state, name = state_of(request), request.path_params["delivery_id"]
    return JsonResponse(await blocking(state.reads, state.service.webhooks.delivery, viewer_of(request), name))


async def resend(request: Request) -> Response:
    """Send a delivery again, whatever became of it before. Its id stays the same, and all attempts begin anew."""
    state, name = state_of(request), request.path_params["delivery_id"]
    check_webhooks_enabled(state.config)
    again = await blocking(state.uploads, state.service.webhooks.resend, viewer_of(request), name)
    note(request, again.delivery_id)
    return JsonResponse(again, 202)


async def _body(request: Request) -> bytes:
    seconds = state_of(request).config.timeout_seconds
    return await received_body(request, max_bytes=MAX_BODY_BYTES, seconds=seconds)


async def _in_turn(request: Request, work: Callable[[], T]) -> T:
    """Look up a name in a thread for such waits: a few at a time for each caller, as when files are fetched."""
    state = state_of(request)
    try:
        async with state.caller_fetches.taken(caller_of(request), TURN_SECONDS):
            return await blocking(state.fetches, work)
    except asyncio.TimeoutError:
        raise QueueFull("Too many other addresses are being looked up: try again later", TURN_SECONDS) from None


def _id(request: Request) -> str:
    text: str = request.path_params["endpoint_id"]
    try:
        endpoint_id = str(uuid.UUID(text))
    except ValueError:
        raise WebhookNotFound(f"Webhook endpoint not found: {text[:64]}") from None
    note(request, endpoint_id)
    return endpoint_id


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

LIST = Operation(
    list_all,
    TAG,
    (Answer(200, "The endpoints", {"application/json": EndpointList}),),
    refusals=(StorageError,),
    scope="webhooks",
    audit="webhook.read",
)
CREATE = Operation(
    create,
    TAG,
    (Answer(201, "The endpoint", {"application/json": WebhookEndpoint}, {"Location": "Path of the endpoint"}),),
    refusals=(*BODY, WebhookNotFound),
    body=JsonBody(NewEndpoint),
    scope="webhooks",
    audit="webhook.create",
)
READ = Operation(read, TAG, (SHOWN,), refusals=FOUND, parameters=(ENDPOINT_ID,), scope="webhooks", audit="webhook.read")
CHANGE = Operation(
    change,
    TAG,
    (SHOWN,),
    refusals=(*BODY, WebhookNotFound),
    parameters=(ENDPOINT_ID,),
    body=JsonBody(EndpointChange),
    scope="webhooks",
    audit="webhook.change",
)
DELETE = Operation(
    delete,
    TAG,
    (Answer(204, "The endpoint is deleted"),),
    refusals=FOUND,
    parameters=(ENDPOINT_ID,),
    scope="webhooks",
    audit="webhook.delete",
)
SECRET = Operation(
    secret, TAG, (SHOWN_SECRET,), refusals=FOUND, parameters=(ENDPOINT_ID,), scope="webhooks", audit="webhook.read"
)
ROTATE = Operation(
    rotate, TAG, (SHOWN_SECRET,), refusals=FOUND, parameters=(ENDPOINT_ID,), scope="webhooks", audit="webhook.rotate"
)
OWN_SECRET = Operation(own_secret, TAG, (SHOWN_SECRET,), refusals=FOUND, scope="webhooks", audit="webhook.read")
ROTATE_OWN = Operation(rotate_own, TAG, (SHOWN_SECRET,), refusals=FOUND, scope="webhooks", audit="webhook.rotate")
TEST = Operation(
    test,
    TAG,
    (BEGUN,),
    refusals=(*FOUND, InvalidOption, OFF),
    parameters=(ENDPOINT_ID,),
    scope="webhooks",
    audit="webhook.send",
)
DELIVERIES = Operation(
    deliveries,
    TAG,
    (Answer(200, "A page of deliveries", {"application/json": DeliveryPage}),),
    refusals=(InvalidOption, StorageError),
    parameters=(STATE, JOB_ID, ENDPOINT, LIMIT, AFTER),
    scope="webhooks",
)
DELIVERY = Operation(
    delivery,
    TAG,
    (Answer(200, "The delivery", {"application/json": WebhookDelivery}),),
    refusals=(DeliveryNotFound, StorageError),
    parameters=(DELIVERY_ID,),
    scope="webhooks",
)
RESEND = Operation(
    resend,
    TAG,
    (BEGUN,),
    refusals=(DeliveryNotFound, InvalidOption, OFF, StorageError),
    parameters=(DELIVERY_ID,),
    scope="webhooks",
    audit="webhook.send",
)
