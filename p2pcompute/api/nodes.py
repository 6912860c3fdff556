"""Nodes as a program sees them, and asking them what they have."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from p2pcompute.errors import BadValue
from p2pcompute.ids import format_device_id

if TYPE_CHECKING:
    from p2pcompute.node.facade import PeerView
    from p2pcompute.node.node import Node
    from p2pcompute.resources.attributes import Attributes
    from p2pcompute.resources.questions import Found

MEET_LOOK_S: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInfo:
    """A node that may run tasks, and what is known of it: a value of the moment at which it was asked for."""

    id: str
    """Public key in hexadecimal."""
    name: str
    state: str
    """self, up, not seen, or not met: it is heard, and has not shown yet that it is a member."""
    slots: int | None
    """Tasks that it runs at once; None when it has not said so."""
    path: str
    """How it is reached."""
    trust: str = "member"
    """self, trusted, member or stranger: how far this computer trusts it."""
    cpus: float | None = None
    """Cores that it may use; like all that follow, not known until a question was asked (`MeshExecutor.find`)."""
    mem: int | None = None
    """Bytes of memory."""
    gpus: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """All that it said of itself and that may be believed, by name: bool, int, float, str, or a tuple of str."""
    age: float | None = None
    """Seconds since it said so."""
    rank: float | None = None
    """Value of the expression by which the answers are ordered."""


async def wait_for_members(node: Node, told: Collection[str], until_s: float) -> None:
    """Return once those are met that a program's node can expect: it hears of its group one after the other.

    Args:
        told: device ids of those that this machine's node has met.  When it has met nobody, as after its own start,
            anybody beside it will do, if the group has had other members.
        until_s: no longer than this moment of the node's clock.
    """
    while node.clock.now() < until_s:
        met = {format_device_id(peer.public_key) for peer in node.peers() if peer.state in ("up", "not met")}
        if met.issuperset(told) and (len(met) > 1 or not node.credentials.group.is_open_to_others):
            return
        await node.clock.sleep(MEET_LOOK_S)


async def known_nodes(node: Node) -> list[NodeInfo]:
    """Return a node, then its peers, with what is known of them without asking."""
    now, found = node.clock.now(), []
    for peer in node.peers():
        known = node.resources.known.get(peer.public_key)
        attributes, age = (None, None) if known is None else (known.attributes, now - known.heard_s)
        found.append(_info(node, peer, peer.public_key, attributes or {}, age))
    return found


async def find_nodes(
    node: Node, expr: str, *, rank: str | None, answers_max: int, time_s: float, age_s: float
) -> tuple[list[NodeInfo], list[str]]:
    """Return nodes of which an expression is true, and a note for each name that none has; see `MeshExecutor.find`."""
    from p2pcompute.resources.questions import Query, condition, ranking, unheard_names

    query = Query(
        expression=condition(expr),
        rank=None if rank is None else ranking(rank),
        answers_max=answers_max,
        time_s=time_s,
        age_s=age_s,
    )
    findings = await node.find(query)
    peers = {peer.public_key: peer for peer in node.peers()}
    notes = [
        f"no node that answers has {name}" + (f"; did you mean {near}?" if near else "")
        for name, near in unheard_names(query, findings)
    ]
    return [_found(node, peers, found) for found in findings.found], notes


async def wait_for_node(node: Node, expr: str, timeout_s: float | None) -> NodeInfo:
    """Return a node of which an expression is true, once there is one.

    Raises:
        TimeoutError: there was none in time.
    """
    from p2pcompute.resources.questions import condition

    expression = condition(expr)
    try:
        async with node.clock.timeout(timeout_s):
            found = await node.when(expression)
    except TimeoutError:
        raise TimeoutError(f"no node met {expr!r} within {timeout_s:g} s") from None
    return _found(node, {peer.public_key: peer for peer in node.peers()}, found)


def _found(node: Node, peers: Mapping[bytes, PeerView], found: Found) -> NodeInfo:
    return _info(node, peers.get(found.key), found.key, found.attributes, found.age_s, found.rank)


def _info(
    node: Node,
    peer: PeerView | None,
    key: bytes,
    attributes: Attributes,
    age_s: float | None,
    rank: float | None = None,
) -> NodeInfo:
    from p2pcompute.resources.attributes import values

    known = values(attributes, node.clock.wall())
    slots = known.get("slots.total")
    return NodeInfo(
        id=key.hex(),
        name=node.name_of(key),
        state="up" if peer is None else peer.state,
        slots=peer.slots if peer is not None and peer.slots is not None else slots if isinstance(slots, int) else None,
        path="" if peer is None else peer.path,
        trust=str(node.credentials.level_of(key)) if peer is None else peer.level,
        cpus=_number(known.get("cpus")),
        mem=_count(known.get("mem.total")),
        gpus=_count(known.get("gpu.count")),
        labels={name.removeprefix("label."): str(value) for name, value in known.items() if name.startswith("label.")},
        attributes=known,
        age=age_s,
        rank=rank,
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count(value: Any) -> int | None:
    return value if type(value) is int else None


def seconds(name: str, value: float | str) -> float:
    """Return seconds of a number or of text like "30s".

    Raises:
        BadValue: it is neither, or below 0.
    """
    from p2pcompute.config import parse_duration

    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise BadValue(f"{name}={value!r} cannot be used", "it takes seconds from 0, or text like '30s'", "change it")
    return float(value)
