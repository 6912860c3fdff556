"""The policy of a group: what holds for all its members, whatever each says of its own computer.

Its condition can only forbid: a job that the policy does not accept is run by no other member than its submitter, and
one that it accepts still has to suit the node that is to run it.  It also says whether the group is open to everybody.
It stands in the group's log (`trust.log`), as a whole.

Pure.  What `accept` means is not known here: it is carried as text, and a node that cannot read it takes no job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.limits import GROUP_ACCEPT_CHARS_MAX, OPEN_PUZZLE_BITS_MAX

_ACCEPT: Final = "accept"
_OPEN: Final = "open"
"""Its value is the work at the door."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPolicy:
    """What holds in a group."""

    accept: str = ""
    """Condition over ``job.*`` on which members run jobs of others; empty: none.  At most GROUP_ACCEPT_CHARS_MAX."""

    open_bits: int | None = None
    """The group is open to everybody who does work of so many bits (`open_door`); None: it is not."""
    more: tuple[tuple[str, Any], ...] = ()
    """What it says besides and this build does not know: kept when the rest is changed."""

    @property
    def is_open(self) -> bool:
        return self.open_bits is not None

    @property
    def wire(self) -> dict[str, Any]:
        """The policy as it stands in an entry: what is not said is left out."""
        said: dict[str, Any] = dict(self.more)
        if self.accept:
            said[_ACCEPT] = self.accept
        return said if self.open_bits is None else {**said, _OPEN: self.open_bits}


def read_policy(value: Any) -> GroupPolicy:
    """Return the policy of an entry.

    Raises:
        RemoteProtocolError: not one that this build can read.
    """
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise RemoteProtocolError("not a policy")
    accept = value.get(_ACCEPT, "")
    if not isinstance(accept, str) or len(accept) > GROUP_ACCEPT_CHARS_MAX or not (accept.isprintable() or not accept):
        raise RemoteProtocolError("a policy with a condition that cannot be one")
    bits = value.get(_OPEN)
    if _OPEN in value and (type(bits) is not int or not 0 <= bits <= OPEN_PUZZLE_BITS_MAX):
        raise RemoteProtocolError("an open group that asks for impossible work")
    more = tuple((key, said) for key, said in value.items() if key not in (_ACCEPT, _OPEN))
    return GroupPolicy(accept=accept, open_bits=bits, more=more)


def strictest(policies: Sequence[GroupPolicy]) -> GroupPolicy:
    """Return what holds when several were made by people who did not know of each other: all of them."""
    conditions = sorted({policy.accept for policy in policies if policy.accept})
    accept = " && ".join(f"({condition})" for condition in conditions) if len(conditions) > 1 else "".join(conditions)
    bits = [policy.open_bits for policy in policies if policy.open_bits is not None]
    is_open = bool(bits) and len(bits) == len(policies)
    more = {key: said for policy in policies for key, said in policy.more}
    return GroupPolicy(accept=accept, open_bits=max(bits) if is_open else None, more=tuple(more.items()))
