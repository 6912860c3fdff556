"""What is read of lists and maps that others sent: the fields that this version knows.

The rule for all that nodes tell one another: *a sender of a later version may add fields at the end of a list and keys
to a map, and who does not know them passes them over.*  They are bounded with the message that they are in.  What is
signed is checked, kept and passed on as the bytes that came, so a signature holds with them.

What must not be passed over has no place there.  It gets what older versions refuse: a number of its own (messages,
facts), a content type of its own (envelopes), or a term of the job or a field of its spec (`scheduler.terms`,
`execution.spec`), which are all demands: who does not know one does not run the job.
"""

from __future__ import annotations

from typing import Any

from p2pcompute.errors import RemoteProtocolError


def listed(value: Any, count: int, what: str, *, optional: int = 0) -> list[Any]:
    """Return the fields of a list that are known here: `count`, and as many of the `optional` ones as there are.

    Raises:
        RemoteProtocolError: it is no list, or shorter than `count`.
    """
    if not isinstance(value, list) or len(value) < count:
        raise RemoteProtocolError(f"malformed message: {what}")
    return value if len(value) <= count + optional else value[: count + optional]


def named(value: Any, names: frozenset[str], what: str) -> dict[str, Any]:
    """Return a map that has all these keys, with those that it has besides.

    Raises:
        RemoteProtocolError: it is no map, or one of them is missing.
    """
    if not isinstance(value, dict) or not names <= value.keys():
        raise RemoteProtocolError(f"malformed message: {what}")
    return value
