"""The policy of a group: what holds for all its members, whatever each says of its own computer.

It can only forbid: a job that the policy does not accept is run by no other member than its submitter, and one that it
accepts still has to suit the node that is to run it.  It stands in the group's log (`trust.log`), as a whole.

Pure.  What `accept` means is not known here: it is carried as text, and a node that cannot read it takes no job.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.limits import GROUP_ACCEPT_CHARS_MAX

_ACCEPT: Final = "accept"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPolicy:
    """What holds in a group."""

    accept: str = ""
    """Condition over ``job.*`` on which members run jobs of others; empty: none.  At most GROUP_ACCEPT_CHARS_MAX."""

    @property
    def wire(self) -> dict[str, Any]:
        """The policy as it stands in an entry: what is not said is left out."""
        return {_ACCEPT: self.accept} if self.accept else {}


def read_policy(value: Any) -> GroupPolicy:
    """Return the policy of an entry.

    Raises:
        RemoteProtocolError: not one that this build knows all of.
    """
    if not isinstance(value, dict) or any(key != _ACCEPT for key in value):
        raise RemoteProtocolError("a policy that this build does not know")
    accept = value.get(_ACCEPT, "")
    if not isinstance(accept, str) or len(accept) > GROUP_ACCEPT_CHARS_MAX or not (accept.isprintable() or not accept):
        raise RemoteProtocolError("a policy with a condition that cannot be one")
    return GroupPolicy(accept=accept)


def strictest(policies: Iterable[GroupPolicy]) -> GroupPolicy:
    """Return what holds when several were made by people who did not know of each other: all of them."""
    conditions = list(dict.fromkeys(policy.accept for policy in policies if policy.accept))
    if len(conditions) < 2:
        return GroupPolicy(accept="".join(conditions))
    return GroupPolicy(accept=" && ".join(f"({condition})" for condition in sorted(conditions)))
