"""Reads a JSON body into a Struct."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from whisper_api.errors import CallerLimit, InvalidInput
from whisper_api.server.responses.problems import Problem

__all__ = ["BODY_REFUSALS", "MAX_JSON_BYTES", "decoded"]

T = TypeVar("T")

MAX_JSON_BYTES = 1 << 20

# What an operation with a JSON body may answer because of the body.
BODY_REFUSALS = (
    InvalidInput,
    CallerLimit,
    Problem(408, "slow_sender", "The body comes too slowly"),
    Problem(413, "body_too_large", "The body is larger than the address takes"),
)


def decoded(body: bytes, kind: type[T]) -> T:
    """The value of a JSON body.

    Args:
        body: the whole body.
        kind: type of the value.

    Raises:
        InvalidInput: the body is not JSON, or no such value.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except RecursionError:
        raise InvalidInput("The body cannot be used: its JSON is nested too deep") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidInput(f"The body cannot be used: {error}") from None
