"""Which results an owner believes: the rule, and who computes a task again for its sake.

    who computed it                     what its result is
    ----------------------------------  --------------------------------------------------------------------------
    this node, or one trusted here      the truth: accepted at once, and the verdict on what others claimed
    a member                            a claim: it is weighed against those of others (`trust.verification`), and
                                        accepted when enough of them agree, or a trusted node finds the same
    somebody blocked or banned here     nothing: it gets no tasks

Why: members were let in by somebody, which says that they may take part, not that their machines compute rightly.  The
machine's owner can say so of a node (`p2pc trust set NODE trusted`, `p2pc invite --mine`); then it costs nothing, since
a job of which no member has asked for tasks has no books here.

What a member is given looks the same whether it is the first that computes a task, a copy to compare with, or one to
prove itself with: attempt 1 and a payload.  A copy is given out only after the first claim has arrived.  A trusted
node decides conflicts before anything else of the job, begins what nobody has begun, and then computes what is claimed
and not credible yet: one run of it settles a task.

A task that a member has begun is *held* until it is accepted: it is neither ready nor leased in `OwnerCore`.  It may
be computed by several nodes at once, whose leases are here.  Failures that members tell count, and are not believed
alone: the last attempt that a job allows is a trusted node's, while there is one.

Layers, each a class that uses those above it:

    belief        who may, whose word is the truth; what is kept
    lending       leases of held tasks
    consequences  accept, revoke, ban; ends of tasks and jobs
    handing_out   who computes what again
    claims        what is said about tasks; earlier lives
    watching      what changes with time: `Acceptance`

Pure, as `OwnerCore`, which calls it and performs what follows.

Bounds: VERIFY_WORKERS_MAX workers of each rule; VERIFY_HELD_BYTES_MAX bytes of outputs and payloads that wait: then
members begin no further tasks, and from VERIFY_UNASKED_BYTES_MAX on nobody is listened to about what he was not lent;
VERIFY_LENDS_PER_TASK lendings and claims for each task of a job, with the same consequence;
EVIDENCE_MAX remarkable events of each node.
"""

from p2pcompute.scheduler.acceptance.belief import LevelOf, everybody_is_trusted
from p2pcompute.scheduler.acceptance.watching import DISPUTED, Acceptance

__all__ = ["DISPUTED", "Acceptance", "LevelOf", "everybody_is_trusted"]
