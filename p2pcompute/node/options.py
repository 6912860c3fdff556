"""What a person, or a program that embeds a node, may choose about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from p2pcompute.host.interfaces import Address
from p2pcompute.limits import CUSTODIANS
from p2pcompute.node.comfort_service import ComfortSettings
from p2pcompute.scheduler.policies import Policy

SOLO_GROUP_NAME: Final = "home"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """What a person may choose about a node."""

    name: str
    group_name: str = SOLO_GROUP_NAME
    """Of the group that is founded where there is none."""
    port: int = 0
    """0: chosen at the first start and kept."""
    first_contacts: tuple[Address, ...] = ()
    seeds: tuple[tuple[str, int | None], ...] = ()
    """Domains, or hosts with ports: looked up for first contacts while nobody answers."""
    discover: bool = True
    accepts_others: bool = True
    """False: only this node's own jobs run here."""
    isolation: str = ""
    """How work of others is run: the attribute of this name; empty: nothing is said."""
    accept_if: str = ""
    """Condition over ``job.*`` on which work of others is taken; empty: always."""
    machine: str = ""
    """What programs this machine takes, like "linux x86_64"; empty: nothing is said."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What its owner says of it: ``label.KEY``, and tags where the value is empty."""
    is_durable: bool = True
    """False for an embedded node that keeps nothing: no journal, no result rows."""
    custodians: int = CUSTODIANS
    """How many nodes keep a job that is submitted here too, where there are so many."""
    policy: Policy | None = None
    """Which of several nodes that wait is given tasks first; None: in turn."""
    is_networked: bool = True
    """False for an embedded node on its own: no socket, no port."""
    gives_network: bool = False
    """Whether tasks of others may reach public addresses from here."""
    grace_s: float = 30.0
    """How long running tasks may take to finish when the node stops."""
    share: Callable[[], float] = lambda: 1.0
    """What part of the cores is for the work of others in this group, where this machine is in several."""
    comfort: ComfortSettings | None = None
    """When the work of others runs; None: always, because nobody sits at this machine."""
