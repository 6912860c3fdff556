"""What whoever runs a node should know of it, in words."""

from __future__ import annotations

from collections.abc import Sequence

from p2pcompute.errors import StoreError
from p2pcompute.node.facade import SeedView
from p2pcompute.node.network import Network
from p2pcompute.node.seeds import note as seed_note
from p2pcompute.scheduler.service import Scheduler


def notes_of(
    scheduler: Scheduler, network: Network, trouble: StoreError | None, seeds: Sequence[SeedView]
) -> list[str]:
    """Return what keeps a node from work, or from others.

    Args:
        trouble: of the store of blobs; None: it takes them.
        seeds: as they are known now.
    """
    notes: list[str] = []
    if (trouble := scheduler.owner.trouble or trouble) is not None:
        what = f"{trouble.what} ({trouble.why})" if trouble.why else trouble.what
        notes.append(f"the store takes nothing: {what}; {trouble.fix or 'work goes on when it does'}")
    if scheduler.worker.health.ill_because:
        notes.append(f"no task can run here: {scheduler.worker.health.ill_because}; it is tried again now and then")
    if network.dht is not None and network.dht.is_link_down:
        notes.append("no peer answers: this machine's network seems to be down")
    elif network.dht is not None and network.dht.index.is_degraded:
        notes.append("the index of the group is out of reach: questions and jobs go to the nodes known here")
    if network.dht is not None and network.dht.is_client:
        notes.append(
            "nobody can call this node from outside (NAT or firewall): it works with those that it has called; "
            f"to be reached, forward port {network.port} (UDP and TCP) to this machine"
        )
    if network.is_lost and network.is_on_network:
        notes += filter(None, map(seed_note, seeds))
    return notes
