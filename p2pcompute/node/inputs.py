"""What a task needs on a node before it starts."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from p2pcompute.execution.spec import JobSpec, TaskPayload, blobs_of, decode_payload, decode_spec
from p2pcompute.host.interfaces import BlobRef

NO_INPUTS: Final = TaskPayload()
_SPECS_CACHED_MAX: Final = 64
"""Descriptions of jobs that are kept decoded: a node has tasks of a few jobs at a time."""


@lru_cache(maxsize=_SPECS_CACHED_MAX)
def spec_of(raw: bytes) -> JobSpec:
    """Return a job's description; those asked for lately are kept.

    Raises:
        RemoteProtocolError: it is malformed.
    """
    return decode_spec(raw)


def inputs_of(spec: bytes, payload: bytes) -> list[BlobRef]:
    """Return the blobs that a task needs on the node before it starts.

    A payload that holds neither key under which it could name one is not decoded: that is most of them.

    Raises:
        RemoteProtocolError: the description is malformed.
    """
    if b"_blob" in payload or b"send" in payload:
        return blobs_of(spec_of(spec), decode_payload(payload))
    return blobs_of(spec_of(spec), NO_INPUTS)
