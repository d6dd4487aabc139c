"""``/admin/keys``: creates, lists, changes, rotates and revokes keys."""

from __future__ import annotations

import functools
import re

from starlette.requests import Request
from starlette.responses import Response

from whisper_api.access.keys import KeyRing, access_key
from whisper_api.errors import KeyNotFound, LastAdminKey
from whisper_api.key_values import AccessKey, KeyChange, KeyList, KeyWithSecret, NewKey, Rotation
from whisper_api.server.auditing import note
from whisper_api.server.operations import Answer, JsonBody, Parameter, created, operation
from whisper_api.server.state import blocking, key_of, service_of, writes
from whisper_api.server.uploads.receiving import decoded, received_body, received_value
from whisper_api.store.rows import Key

MAX_BYTES = 16 << 10
KEY_ID_FORM = re.compile("[0-9a-f]{8}")


KEY_ID = Parameter(
    "key_id", str, "Id of the key, 8 hexadecimal digits", location="path", required=True, refusals=(KeyNotFound,)
)

key_call = functools.partial(operation, tag="Keys", roles=("admin",), scope="admin")
of_one_key = functools.partial(key_call, parameters=(KEY_ID,))


@key_call("The keys")
def keys(request: Request) -> KeyList:
    """List all keys, also those that have expired or were revoked, without their secrets."""
    return KeyList(keys=tuple(map(access_key, _ring(request).list())))


@key_call(
    Answer(201, "The key and its token", {"application/json": KeyWithSecret}, {"Location": "Path of the key"}),
    body=JsonBody(NewKey),
    audit="key.create",
)
async def create_key(request: Request) -> Response:
    """Create a key. The response has its token, which cannot be had again.

    A caller whose own key has scopes can only create keys with scopes among these.
    """
    new = await received_value(request, NewKey, max_bytes=MAX_BYTES)
    key, token = await writes(request, _ring(request).add, new, key_of(request))
    note(request, key.key_id)
    return created(request, KeyWithSecret(key=access_key(key), token=token), f"/admin/keys/{key.key_id}")


@of_one_key("The key")
def key(request: Request) -> AccessKey:
    """Show a key, without its secret."""
    return access_key(_ring(request).get(_key_id(request)))


@of_one_key("The key", refusals=(LastAdminKey,), body=JsonBody(KeyChange), audit="key.change")
async def change_key(request: Request) -> AccessKey:
    """Change the name, the role, the expiry, the scopes or the limits of a valid key; the rest stays as it is.

    Requests that begin later see the change. A key that has expired or was revoked cannot be changed. The last key that
    can manage keys keeps its role and its scope `admin` and gets no expiry.
    """
    change = await received_value(request, KeyChange, max_bytes=MAX_BYTES)
    return access_key(await writes(request, _ring(request).change, _key_id(request), change, key_of(request)))


@of_one_key("The key and its new token", refusals=(LastAdminKey,), body=JsonBody(Rotation), audit="key.rotate")
async def rotate_key(request: Request) -> KeyWithSecret:
    """Give a valid key a new secret. The response has the new token, which cannot be had again.

    Earlier secrets are accepted for `grace_seconds` more; 0 ends them at once. If the response is lost, rotate again
    with the old secret.
    """
    body = await received_body(request, max_bytes=MAX_BYTES)
    rotation = decoded(body, Rotation) if body.strip() else Rotation()
    rotating = _ring(request).rotate, _key_id(request), rotation.grace_seconds, key_of(request)
    key, token = await writes(request, *rotating)
    return KeyWithSecret(key=access_key(key), token=token)


@of_one_key("The key, which has ended", refusals=(LastAdminKey,), audit="key.revoke")
async def revoke_key(request: Request) -> AccessKey:
    """Revoke a key for good.

    Its unfinished jobs are canceled, its event streams end, and its known speakers and vocabularies are deleted. The
    last key that can manage keys cannot be revoked. A key that has ended already stays as it is.
    """
    service, key_id, by = service_of(request), _key_id(request), key_of(request)

    def revoke() -> Key:
        ended = service.keys.end(key_id, by)
        service.end_revoked()
        return ended

    # Not in a pool of the server, because the cancellation of running jobs may take a moment.
    return access_key(await blocking(None, revoke))


def _ring(request: Request) -> KeyRing:
    return service_of(request).keys


def _key_id(request: Request) -> str:
    key_id: str = request.path_params["key_id"]
    if KEY_ID_FORM.fullmatch(key_id):
        note(request, key_id)
    return key_id
