"""The OpenAPI document of the control API, made from the table of calls.

``python -m p2pcompute.daemon.openapi`` prints it; the shipped ``openapi.json`` is its output.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import msgspec

from p2pcompute.daemon.calls import CALLS, Call
from p2pcompute.daemon.uploads import TaskLine

_REF = "#/components/schemas/{name}"
_JSON_TYPES = {"id": "string", "ref": "string", "name": "string", "index": "integer"}


def _operation(call: Call) -> dict[str, Any]:
    names = re.findall(r"\{(\w+)(?::\w+)?\}", call.path)
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": _JSON_TYPES[name]}} for name in names
    ] + [
        {"name": name, "in": "query", "description": text, "schema": {"type": kind}} for name, kind, text in call.query
    ]
    is_media = "/" in call.answer and not call.answer.startswith("p2pc.")
    content: dict[str, Any] = {
        call.answer if is_media else "application/json": {
            "schema": {"type": "string", "format": "binary"} if is_media else {"type": "object", "title": call.answer}
        }
    }
    operation: dict[str, Any] = {
        "operationId": call.name,
        "summary": call.summary,
        "responses": {
            "200": {"description": call.answer, "content": content},
            "default": {
                "description": "What went wrong, why, and what to do",
                "content": {"application/json": {"schema": {"$ref": _REF.format(name="Error")}}},
            },
        },
    }
    if parameters:
        operation["parameters"] = parameters
    if isinstance(call.body, str):
        operation["requestBody"] = {"content": {call.body: {"schema": {"$ref": _REF.format(name="TaskLine")}}}}
    elif call.body is not None:
        operation["requestBody"] = {
            "content": {"application/json": {"schema": {"$ref": _REF.format(name=call.body.__name__)}}}
        }
    return operation


def document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    bodies = [call.body for call in CALLS if isinstance(call.body, type)]
    _refs, schemas = msgspec.json.schema_components([TaskLine, *dict.fromkeys(bodies)], ref_template=_REF)
    schemas["Error"] = {
        "title": "p2pc.error/1",
        "type": "object",
        "properties": {name: {"type": "string"} for name in ("schema", "code", "what", "why", "fix")},
        "required": ["schema", "code", "what", "why", "fix"],
    }
    paths: dict[str, Any] = {}
    for call in CALLS:
        plain = re.sub(r"\{(\w+):\w+\}", r"{\1}", call.path)
        paths.setdefault(plain, {})[call.method.lower()] = _operation(call)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "p2pc control API",
            "version": "1",
            "description": "HTTP over the node's unix socket: curl --unix-socket PATH http://p2pc/v1/status",
        },
        "paths": paths,
        "components": {"schemas": schemas},
    }


def render() -> str:
    """Return the document as the shipped file holds it."""
    return msgspec.json.format(msgspec.json.encode(document(), order="sorted"), indent=1).decode() + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
