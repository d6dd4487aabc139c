"""``/vocabularies``: lists of names and terms that jobs use by name."""

from __future__ import annotations

import functools

import msgspec
from starlette.requests import Request

from whisper_api.errors import VocabularyNotFound
from whisper_api.job_values import Vocabulary
from whisper_api.server.auditing import note
from whisper_api.server.operations import JsonBody, Parameter, operation
from whisper_api.server.state import owner_of, service_of, writes
from whisper_api.server.uploads.receiving import received_value
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


NAME = Parameter("name", str, "Name of the vocabulary", location="path", required=True)

vocabulary_call = functools.partial(operation, tag="Vocabularies", scope="vocabularies")
named_call = functools.partial(vocabulary_call, parameters=(NAME,))


@vocabulary_call("The vocabularies", audit="vocabulary.read")
def list_all(request: Request) -> VocabularyList:
    """List your vocabularies. Other keys do not see them."""
    return VocabularyList(tuple(service_of(request).vocabularies.list(owner_of(request))))


@named_call("The vocabulary", refusals=(VocabularyNotFound,), audit="vocabulary.read")
def read(request: Request) -> Vocabulary:
    """Read a vocabulary."""
    return service_of(request).vocabularies.get(owner_of(request), _name(request))


@named_call("The vocabulary", body=JsonBody(Terms), audit="vocabulary.write")
async def put(request: Request) -> Vocabulary:
    """Create a vocabulary, or replace its terms. Jobs that were submitted before keep the earlier terms."""
    name, terms = _name(request), (await received_value(request, Terms)).terms
    return await writes(request, service_of(request).vocabularies.put, owner_of(request), name, terms)


@named_call("The vocabulary is deleted", refusals=(VocabularyNotFound,), audit="vocabulary.delete")
def delete(request: Request) -> None:
    """Delete a vocabulary. Jobs that were submitted before keep its terms until they are deleted."""
    service_of(request).vocabularies.delete(owner_of(request), _name(request))


def _name(request: Request) -> str:
    """The name in the path. The audit trail has its digest, because a name is a text that its owner may delete."""
    name: str = request.path_params["name"]
    note(request, digest(name))
    return name
