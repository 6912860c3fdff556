"""Who is hostile in a run, and how; drawn from the seed.  What they do is in `adversaries`."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Annotated, Final

import msgspec
from msgspec import Meta

KINDS: Final = (
    "wrong", "colluding", "drop", "hoard", "late", "free_rider", "false_find",
    "eclipse", "sybil", "replay", "malformed", "slow_loris", "equivocation", "steal_flood",
)  # fmt: skip
"""In this order they are drawn."""

Amount = Annotated[float, Meta(ge=0)]
OF: Final = "share below 1, or number, of nodes that"


class HostileSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many nodes are hostile in which way."""

    wrong: Annotated[Amount, Meta(description=f"{OF} return random values")] = 0.0
    colluding: Annotated[Amount, Meta(description=f"{OF} return wrong values, all the same ones")] = 0.0
    drop: Annotated[
        Amount, Meta(description=f"{OF} take tasks, never return a result, and do not say that they hold them")
    ] = 0.0
    hoard: Annotated[
        Amount, Meta(description=f"{OF} take tasks, say for ever that they hold them, and never end one")
    ] = 0.0
    late: Annotated[Amount, Meta(description=f"{OF} return results long after their leases have ended")] = 0.0
    free_rider: Annotated[
        Amount, Meta(description=f"{OF} have their jobs done by others and take no task themselves")
    ] = 0.0
    false_find: Annotated[Amount, Meta(description=f"{OF} answer with made-up contacts near the key")] = 0.0
    eclipse: Annotated[Amount, Meta(description=f"{OF} name nobody but their own kind, keep no record, find none")] = (
        0.0
    )
    sybil: Annotated[
        Amount,
        Meta(description=f"{OF} run sybil_identities more identities around one key, on one machine, which eclipse it"),
    ] = 0.0
    replay: Annotated[
        Amount,
        Meta(description=f"{OF} send again what they have seen: datagrams of others and their own, their own frames"),
    ] = 0.0
    malformed: Annotated[
        Amount, Meta(description=f"{OF} break the protocol, as members and as strangers: malformed, mutated, oversized")
    ] = 0.0
    slow_loris: Annotated[Amount, Meta(description=f"{OF} hold connections half open and dribble bytes")] = 0.0
    equivocation: Annotated[
        Amount,
        Meta(description=f"{OF} put different records of one sequence number, older ones again, forged ones of others"),
    ] = 0.0
    steal_flood: Annotated[Amount, Meta(description=f"{OF} ask for work without end and decline what they get")] = 0.0
    sybil_identities: Annotated[int, Meta(ge=1, le=1000, description="identities of each sybil")] = 16

    def __post_init__(self) -> None:
        for kind, amount in self.amounts().items():
            if amount > 1 and amount != int(amount):
                raise ValueError(f"`{kind}` is a share below 1, or a whole number of nodes, not {amount:g}")

    def amounts(self) -> dict[str, float]:
        """Return kind → share below 1, or number, of nodes."""
        return {kind: getattr(self, kind) for kind in KINDS}

    def check(self, nodes: int) -> None:
        """Raises ValueError when more nodes are hostile than there are beside the founder."""
        amounts = list(self.amounts().values())
        count, share = sum(amount for amount in amounts if amount >= 1), sum(amount for amount in amounts if amount < 1)
        if count > nodes - 1 or count + share * nodes > nodes:
            what = f"{count + share * nodes:.15g} of {nodes} nodes are hostile"
            raise ValueError(f"{what}: the founder never is, so at most {nodes - 1} can be; see `hostile`")


def draw_hostile(
    settings: HostileSettings, rng: random.Random, *, nodes: int, spared: Collection[int] = ()
) -> dict[int, str]:
    """Return who is hostile: number of the member → kind.  As many as there are members that are not spared."""
    free = [number for number in range(nodes) if number not in spared]
    rng.shuffle(free)
    drawn: dict[int, str] = {}
    for kind in KINDS:
        amount = getattr(settings, kind)
        count = int(amount) if amount >= 1 else max(round(amount * nodes), amount > 0)
        for number in free[:count]:
            drawn[number] = kind
        del free[:count]
    return dict(sorted(drawn.items()))
