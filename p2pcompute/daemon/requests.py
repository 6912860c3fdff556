"""What a request says, read and checked; what is answered, as JSON."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from p2pcompute.errors import UsageError
from p2pcompute.limits import API_BODY_BYTES_MAX, NUMBER_DIGITS_MAX

WAIT_S_MAX: Final = 366 * 86400.0
"""The longest that somebody may want to wait, or a pause may last: a year."""

_encode = msgspec.json.Encoder().encode


class JsonResponse(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return _encode(content)


async def read_body(request: Request) -> bytes:
    """Return the whole body.

    Raises:
        UsageError: longer than API_BODY_BYTES_MAX.
    """
    too_large = UsageError("the request is too large", f"it may have {API_BODY_BYTES_MAX} bytes", code="too-large")
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > API_BODY_BYTES_MAX:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > API_BODY_BYTES_MAX:
            raise too_large
    return bytes(body)


def query_int(request: Request, name: str, default: int) -> int:
    """Return a whole number of the query.

    Raises:
        UsageError: it is none.
    """
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) <= NUMBER_DIGITS_MAX):
        raise UsageError(f"{name}={text} is not a number", code="bad-request")
    return int(text)


def query_number(request: Request, name: str, default: float, most: float) -> float:
    """Return a number of the query, from 0 to `most`.

    Raises:
        UsageError: it is none, or another.
    """
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= most:
        raise UsageError(f"{name}={text[:40]} cannot be used", f"it is a number from 0 to {most:g}", code="bad-request")
    return number


def query_text(request: Request, name: str) -> str:
    """Return a text of the query.

    Raises:
        UsageError: it is missing.
    """
    text = request.query_params.get(name)
    if not text:
        raise UsageError(f"{name} is missing", code="bad-request")
    return text


def query_flag(request: Request, name: str) -> bool:
    """Return whether a flag of the query is set."""
    return request.query_params.get(name, "") not in ("", "0", "false", "no")


def query_states(request: Request, known: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the states that the query names; None: all.

    Raises:
        UsageError: one is not among `known`.
    """
    states = tuple(word for text in request.query_params.getlist("state") for word in text.split(",") if word)
    for state in states:
        if state not in known:
            raise UsageError(f'"{state}" is not a state', f"states are {', '.join(known)}", code="bad-request")
    return states or None
