"""The owner's core: which task goes to whom, and what becomes of it.

Pure: time is passed in, what is to be done comes back from `take_effects`.  The scheduler's rule is `Rule.choose`, in
the order of `fairness`; everything else keeps the books that it reads.

    open task = leased, or ready.  It is leased from the grant on; the lease ends by a result, by expiry, when its
    node is lost or restarted, or when the grant was not acknowledged.

Layers, each a class that uses those above it; `scheduler.books` is what they know of jobs:

    endings   how a task ends, and a job; what has to be done about it
    jobs      what submitters want: add, cancel, retry; earlier lives of this node
    leases    who has asked, who has what, and until when; what running tasks have saved
    rule      who gets which tasks, and how many
    results   what becomes of an attempt's result: failures, deaths, what members claim
    core      what changes with time: `OwnerCore`

Invariants: a task has at most one lease; a leased task is open; the number of ready tasks is open - leased.
Losing a node never counts against a task; a failure of the task itself does, `retries` times.
"""

from p2pcompute.scheduler.owner.core import OwnerCore
from p2pcompute.scheduler.owner.endings import DEADLINE, TASK_S_MIN
from p2pcompute.scheduler.owner.leases import UNFIT_S
from p2pcompute.scheduler.owner.results import WITH_NODE
from p2pcompute.scheduler.owner.rule import PREFER_S

__all__ = [
    "DEADLINE",
    "PREFER_S",
    "TASK_S_MIN",
    "UNFIT_S",
    "WITH_NODE",
    "OwnerCore",
]
