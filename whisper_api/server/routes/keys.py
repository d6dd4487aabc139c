"""``/admin/keys``: creates, lists, changes, rotates and revokes keys."""

from __future__ import annotations

import functools
import re

from starlette.requests import Request
from starlette.responses import Response

from whisper_api.access.keys import KeyRing, access_key
from whisper_api.errors import InvalidOption, KeyNotFound, LastAdminKey, StorageError
from whisper_api.key_values import AccessKey, KeyChange, KeyList, KeyWithSecret, NewKey, Rotation
from whisper_api.server.auditing import note
from whisper_api.server.operations import Answer, JsonBody, Operation, Parameter
from whisper_api.server.resource import JsonResponse
from whisper_api.server.state import blocking, reads, state_of, writes
from whisper_api.server.uploads.receiving import BODY_REFUSALS, decoded, received_body, received_value
from whisper_api.store.rows import Key

MAX_BYTES = 16 << 10
KEY_ID_FORM = re.compile("[0-9a-f]{8}")


async def keys(request: Request) -> Response:
    """List all keys, also those that have expired or were revoked, without their secrets."""
    found = await reads(request, _ring(request).list)
    return JsonResponse(KeyList(keys=tuple(map(access_key, found))))


async def create_key(request: Request) -> Response:
    """Create a key. The response has its token, which cannot be had again.

    A caller whose own key has scopes can only create keys with scopes among these.
    """
    new = await received_value(request, NewKey, max_bytes=MAX_BYTES)
    key, token = await writes(request, _ring(request).add, new, _by(request))
    note(request, key.key_id)
    root = request.scope.get("root_path", "")
    headers = {"Location": f"{root}/admin/keys/{key.key_id}"}
    return JsonResponse(KeyWithSecret(key=access_key(key), token=token), 201, headers)


async def key(request: Request) -> Response:
    """Show a key, without its secret."""
    return _response(await reads(request, _ring(request).get, _key_id(request)))


async def change_key(request: Request) -> Response:
    """Change the name, the role, the expiry, the scopes or the limits of a valid key; the rest stays as it is.

    Requests that begin later see the change. A key that has expired or was revoked cannot be changed. The last key that
    can manage keys keeps its role and its scope `admin` and gets no expiry.
    """
    change = await received_value(request, KeyChange, max_bytes=MAX_BYTES)
    changing = _ring(request).change, _key_id(request), change, _by(request)
    return _response(await writes(request, *changing))


async def rotate_key(request: Request) -> Response:
    """Give a valid key a new secret. The response has the new token, which cannot be had again.

    Earlier secrets are accepted for `grace_seconds` more; 0 ends them at once. If the response is lost, rotate again
    with the old secret.
    """
    body = await received_body(request, max_bytes=MAX_BYTES, seconds=state_of(request).config.timeout_seconds)
    rotation = decoded(body, Rotation) if body.strip() else Rotation()
    rotating = _ring(request).rotate, _key_id(request), rotation.grace_seconds, _by(request)
    key, token = await writes(request, *rotating)
    return JsonResponse(KeyWithSecret(key=access_key(key), token=token))


async def revoke_key(request: Request) -> Response:
    """Revoke a key for good.

    Its unfinished jobs are canceled, its event streams end, and its known speakers and vocabularies are deleted. The
    last key that can manage keys cannot be revoked. A key that has ended already stays as it is.
    """
    state = state_of(request)
    key_id, by = _key_id(request), _by(request)

    def revoke() -> Key:
        ended = state.keys.end(key_id, by)
        state.service.end_revoked()
        return ended

    # Not in a pool of the server, because the cancellation of running jobs may take a moment.
    return _response(await blocking(None, revoke))


def _ring(request: Request) -> KeyRing:
    return state_of(request).keys


def _by(request: Request) -> Key | None:
    """The key of the request; None when authorization is off."""
    key: Key | None = request.scope["state"].get("key")
    return key


def _key_id(request: Request) -> str:
    key_id: str = request.path_params["key_id"]
    if KEY_ID_FORM.fullmatch(key_id):
        note(request, key_id)
    return key_id


def _response(key: Key) -> Response:
    return JsonResponse(access_key(key))


KEY_ID = Parameter("key_id", str, "Id of the key, 8 hexadecimal digits", location="path", required=True)
FOUND = Answer(200, "The key", {"application/json": AccessKey})

key_call = functools.partial(Operation, tag="Keys", roles=("admin",), scope="admin")
LIST = key_call(keys, (Answer(200, "The keys", {"application/json": KeyList}),))
CREATE = key_call(
    create_key,
    (Answer(201, "The key and its token", {"application/json": KeyWithSecret}, {"Location": "Path of the key"}),),
    refusals=(InvalidOption, StorageError, *BODY_REFUSALS),
    body=JsonBody(NewKey),
    audit="key.create",
)
SHOW = key_call(key, (FOUND,), refusals=(KeyNotFound,), parameters=(KEY_ID,))
CHANGE = key_call(
    change_key,
    (FOUND,),
    refusals=(InvalidOption, KeyNotFound, LastAdminKey, StorageError, *BODY_REFUSALS),
    parameters=(KEY_ID,),
    body=JsonBody(KeyChange),
    audit="key.change",
)
ROTATE = key_call(
    rotate_key,
    (Answer(200, "The key and its new token", {"application/json": KeyWithSecret}),),
    refusals=(InvalidOption, KeyNotFound, LastAdminKey, StorageError, *BODY_REFUSALS),
    parameters=(KEY_ID,),
    body=JsonBody(Rotation),
    audit="key.rotate",
)
REVOKE = key_call(
    revoke_key,
    (Answer(200, "The key, which has ended", {"application/json": AccessKey}),),
    refusals=(KeyNotFound, LastAdminKey, StorageError),
    parameters=(KEY_ID,),
    audit="key.revoke",
)
