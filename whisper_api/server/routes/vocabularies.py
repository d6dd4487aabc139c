"""``/vocabularies``: lists of names and terms that jobs use by name."""

from __future__ import annotations

import functools

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from whisper_api.errors import InvalidOption, StorageError, VocabularyNotFound
from whisper_api.job_values import Vocabulary
from whisper_api.server.auditing import note
from whisper_api.server.operations import Answer, JsonBody, Operation, Parameter
from whisper_api.server.resource import JsonResponse
from whisper_api.server.state import owner_of, reads, service_of, writes
from whisper_api.server.uploads.receiving import BODY_REFUSALS, received_value
from whisper_api.store.texts import digest


class VocabularyList(msgspec.Struct, frozen=True):
    """The vocabularies of a caller.

    Attributes:
        vocabularies: in the order of their names.
    """

    vocabularies: tuple[Vocabulary, ...]


class Terms(msgspec.Struct, frozen=True):
    """The content of a vocabulary.

    Attributes:
        terms: names and terms as they are to be written, 1 to 2000 of 1 to 100 characters.
    """

    terms: tuple[str, ...]


async def list_all(request: Request) -> Response:
    """List your vocabularies. Other keys do not see them."""
    found = await reads(request, service_of(request).vocabularies.list, owner_of(request))
    return JsonResponse(VocabularyList(tuple(found)))


async def read(request: Request) -> Response:
    """Read a vocabulary."""
    name = _name(request)
    return JsonResponse(await reads(request, service_of(request).vocabularies.get, owner_of(request), name))


async def put(request: Request) -> Response:
    """Create a vocabulary, or replace its terms. Jobs that were submitted before keep the earlier terms."""
    name, terms = _name(request), (await received_value(request, Terms)).terms
    return JsonResponse(await writes(request, service_of(request).vocabularies.put, owner_of(request), name, terms))


async def delete(request: Request) -> Response:
    """Delete a vocabulary. Jobs that were submitted before keep its terms until they are deleted."""
    name = _name(request)
    await writes(request, service_of(request).vocabularies.delete, owner_of(request), name)
    return Response(status_code=204)


def _name(request: Request) -> str:
    """The name in the path. The audit trail has its digest, because a name is a text that its owner may delete."""
    name: str = request.path_params["name"]
    note(request, digest(name))
    return name


NAME = Parameter("name", str, "Name of the vocabulary", location="path", required=True)
STORED = Answer(200, "The vocabulary", {"application/json": Vocabulary})

vocabulary_call = functools.partial(Operation, tag="Vocabularies", scope="vocabularies")
LIST = vocabulary_call(
    list_all,
    (Answer(200, "The vocabularies", {"application/json": VocabularyList}),),
    refusals=(StorageError,),
    audit="vocabulary.read",
)
READ = vocabulary_call(
    read, (STORED,), refusals=(VocabularyNotFound, StorageError), parameters=(NAME,), audit="vocabulary.read"
)
PUT = vocabulary_call(
    put,
    (STORED,),
    refusals=(InvalidOption, StorageError, *BODY_REFUSALS),
    parameters=(NAME,),
    body=JsonBody(Terms),
    audit="vocabulary.write",
)
DELETE = vocabulary_call(
    delete,
    (Answer(204, "The vocabulary is deleted"),),
    refusals=(VocabularyNotFound, StorageError),
    parameters=(NAME,),
    audit="vocabulary.delete",
)
