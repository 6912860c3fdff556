"""Settings of the experiment `mesh`: whole nodes, and what is checked of them."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from p2pcompute.simulation.faults import FaultSettings
from p2pcompute.simulation.hostile import HostileSettings
from p2pcompute.simulation.network import NetworkSettings
from p2pcompute.simulation.population import PopulationSettings
from p2pcompute.simulation.workloads import WorkloadSettings

CHECKS: Final = (
    "books", "conservation", "once", "buckets", "records", "bounds", "errors", "livelock", "memory",
    "held", "doubles", "idle", "recovered", "leases",
    "over", "values", "rest", "known", "connected", "chatter", "lookups", "retrievable", "stopped",
)  # fmt: skip
"""What is checked: the names of all invariants."""


class CheckSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is checked, how often, and where the bounds lie."""

    every_s: Annotated[float, Meta(ge=0.01, description="time between two looks at the nodes, seconds")] = 0.5
    nodes_max: Annotated[int, Meta(ge=1, description="nodes looked into at once, in turn")] = 20
    off: Annotated[tuple[str, ...], Meta(description=f"what is not checked, of {', '.join(CHECKS)}")] = ()
    wrong_values: Annotated[bool, Meta(description="a wrong value of a hostile node breaks the run too")] = False
    settle_s: Annotated[float, Meta(ge=0, description="from the end of all faults to calm, seconds")] = 75.0
    stall_s: Annotated[
        float, Meta(ge=0, description="in calm: longest life of a lease without holder, or of a repeated one, seconds")
    ] = 8.0
    idle_s: Annotated[float, Meta(ge=0, description="in calm: longest idleness beside visible work, seconds")] = 8.0
    over_s: Annotated[float, Meta(ge=0, description="within which all jobs end after the last fault, seconds")] = 900.0
    rest_s: Annotated[float, Meta(ge=0, description="within which all comes to rest after the last job, seconds")] = (
        240.0
    )
    watch_s: Annotated[float, Meta(gt=0, description="how long the rest is watched for messages, seconds")] = 60.0
    meet_s: Annotated[float, Meta(ge=0, description="within which peers know one another again, seconds")] = 200.0
    small_group: Annotated[int, Meta(ge=0, description="up to so many nodes, all must know one another")] = 20
    chatter: Annotated[
        float, Meta(gt=0, description="at rest: messages per second for each contact and channel of a node")
    ] = 0.3
    events_per_s: Annotated[float, Meta(gt=0, description="events per second and node without any progress")] = 200.0
    lookups: Annotated[int, Meta(ge=0, description="lookups made at the end")] = 40
    lookup_share: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="part of the true nearest nodes that those lookups must find; who misses some may try again",
        ),
    ] = 0.999
    probes: Annotated[int, Meta(ge=0, description="records put and got at the end, and nodes stopped")] = 4

    def __post_init__(self) -> None:
        if unknown := [name for name in self.off if name not in CHECKS]:
            raise ValueError(f"there is no check {unknown[0]!r} to be `off`, only {', '.join(CHECKS)}")


class MeshSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the experiment `mesh`."""

    nodes: Annotated[int, Meta(ge=1, le=100_000, description="installations of the group")] = 10
    hours: Annotated[float, Meta(gt=0, le=10_000, description="simulated time before everything heals, hours")] = 0.1
    lan: Annotated[bool, Meta(description="all machines on one LAN instead of spread over the world")] = False
    warm: Annotated[bool, Meta(description="tables filled by the oracle instead of by joining")] = False
    contacts: Annotated[
        int, Meta(ge=0, le=100, description="members beside the founder whose address a node knows from the beginning")
    ] = 0
    join_s: Annotated[
        float, Meta(ge=0, description="the nodes that are up at the beginning start within this time, seconds")
    ] = 5.0
    starts_s: Annotated[
        tuple[Annotated[float, Meta(ge=0, le=36_000_000)], ...],
        Meta(description="instead: when each of them starts, by number, seconds; the first at 0"),
    ] = ()
    real_crypto_in: Annotated[int, Meta(ge=0, description="real Ed25519 in one of so many seeds; 0: never")] = 0
    shuffle_in: Annotated[
        int,
        Meta(
            ge=0,
            description="callbacks that are ready at one time run in a seeded random order in one of so many seeds; "
            "0: never",
        ),
    ] = 0
    trust: Annotated[
        Literal["trusted", "member"],
        Meta(description="how far the members trust one another: results of those that are not trusted are checked"),
    ] = "trusted"
    network: NetworkSettings = NetworkSettings()
    population: PopulationSettings = PopulationSettings()
    faults: FaultSettings = FaultSettings()
    hostile: HostileSettings = HostileSettings()
    workload: tuple[WorkloadSettings, ...] = ()
    checks: CheckSettings = CheckSettings()

    def __post_init__(self) -> None:
        self.hostile.check(self.nodes)
        if not self.starts_s:
            return
        if self.starts_s[0] != 0:
            raise ValueError(f"`starts_s` begins with 0, not {self.starts_s[0]:g}: the first node founds the group")
        if len(self.starts_s) < self.nodes:
            raise ValueError(f"`starts_s` says when {len(self.starts_s)} of {self.nodes} nodes start: name each")
        if max(self.starts_s) > self.hours * 3600:
            raise ValueError(f"a node of `starts_s` starts at {max(self.starts_s):g} s, after the end: see `hours`")
