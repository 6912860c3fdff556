"""CPU time that processes have used with all that they have started, by one look at the processes of this machine.

Deviations: where there is no /proc nothing is known.  What has left its parents for process 1 is not counted.

Source: proc_pid_stat(5).
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Final

_PARENT: Final = 1
_USED: Final = slice(11, 15)
"""User and system time, then those of children that it has reaped; positions after the name of the program."""
_DEPTH_MAX: Final = 100
"""Of a tree; processes that come and go while they are read might make a ring."""


def used_by_trees(roots: Collection[int]) -> dict[int, float]:
    """Return the seconds of CPU time of processes and what is below them; those that are gone are left out.

    Only differences mean anything: a process that ends without being reaped takes its time with it.
    """
    try:
        names = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return {}
    found = {int(name): stat for name in names if (stat := _stat(name)) is not None}
    ticks = dict.fromkeys((root for root in roots if root in found), 0)
    for pid, (_parent, used) in found.items():
        place = pid
        for _ in range(_DEPTH_MAX):
            if place in ticks:
                ticks[place] += used
                break
            if place not in found:
                break
            place = found[place][0]
    per_s = os.sysconf("SC_CLK_TCK")
    return {root: count / per_s for root, count in ticks.items()}


def _stat(name: str) -> tuple[int, int] | None:
    """Return the parent of a process and its ticks of CPU time; None when it is gone."""
    try:
        with open(f"/proc/{name}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return int(fields[_PARENT]), sum(map(int, fields[_USED]))
    except (OSError, ValueError, IndexError):
        return None
