"""What the control API and the embedded library may ask of a node, and the views that they get.

`Node` satisfies `NodeFacade`; so does the fake of the daemon's tests.  Views are values of one moment: a node makes
them when asked and keeps none of them.  Times are Unix seconds, durations seconds, sizes bytes; unknown is None.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from p2pcompute.execution.spec import JobSpec
from p2pcompute.host.interfaces import Attributes, BlobStore, Clock
from p2pcompute.host.runs import Outcome
from p2pcompute.node.slowness import Slowness
from p2pcompute.resources.explaining import Machine, Report, explain
from p2pcompute.resources.expressions import Expression
from p2pcompute.resources.matching import Needs
from p2pcompute.resources.questions import Findings, Found, Query
from p2pcompute.scheduler.terms import JobTerms
from p2pcompute.trust.admission import Entry
from p2pcompute.trust.groups import MEMBER_ROLES
from p2pcompute.trust.levels import Level
from p2pcompute.trust.policy import GroupPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class DhtStatus:
    """This node in the DHT of its group.  Times and counts are from the moment at which its port was bound; a change
    of group binds it anew."""

    contacts: int
    """Verified peers in the routing table."""
    first_contact_s: float | None = None
    """When the first peer was known."""
    last_contact_s: float | None = None
    """When the peer that was added last was known."""
    rtt_s: float | None = None
    """Smoothed round trip of a request, over all peers."""
    datagrams_received: int = 0
    requests_sent: int = 0
    requests_timed_out: int = 0
    lookups: int = 0
    lookup_requests: int = 0
    """Of all lookups together; so are the hops."""
    lookup_hops: int = 0
    """Requests one after the other that led to the nearest peer."""
    role: str = "server"
    """server; client: it cannot be reached from outside, so it asks others and nobody asks it."""
    index: str = "unused"
    """The capacity index: unused where everybody is known, ok, or degraded: out of reach, so that questions and jobs
    go to known nodes only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedView:
    """A seed of the settings: asked for first contacts while nobody that is known answers."""

    seed: str
    """A domain, or HOST:PORT."""
    asked_s: float | None = None
    """Since it was asked last; None: it was not needed."""
    addresses: tuple[str, ...] = ()
    """What it led to."""
    trouble: str = ""
    """Why it led to nothing, or to no more."""
    ignored: Mapping[str, int] = field(default_factory=dict)
    """What it said and was not used: how often, by reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """This node in one look."""

    name: str
    public_key: bytes
    state: str
    """working, idle, paused or draining."""
    uptime_s: float
    port: int
    is_on_network: bool
    """False while it listens on loopback only."""
    group_name: str
    group_id: bytes
    is_alone: bool
    """True until the first invite or join."""
    members_known: int
    """Members heard of, this node included."""
    slots_total: int
    slots_busy: int
    jobs_running: int
    jobs_waiting: int
    is_removed: bool = False
    """This node was removed from its group, and works for itself."""
    dht: DhtStatus | None = None
    """None while there is no network."""
    seeds: tuple[SeedView, ...] = ()
    group_hint: bytes = b""
    """What datagrams of the group begin with, 4 bytes: what a TXT record of a seed names it by."""
    notes: tuple[str, ...] = ()
    """Things to look at: one sentence each, with what to do."""
    paused_because: str = ""
    """Why nothing of others, or nothing at all, runs here; empty: it does."""
    paused_since: float = 0.0
    """Wall clock."""
    cpu_given_s: float = 0.0
    """CPU time that others have signed receipts for."""
    cpu_taken_s: float = 0.0
    """CPU time that others have given to jobs of this node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerView:
    """A member of the group; the first of a list is this node."""

    name: str
    public_key: bytes
    state: str
    """self, up, not seen, or not met: it is heard, and has not shown yet that it is a member."""
    seen_s: float | None = None
    """Since it was last heard."""
    slots: int | None = None
    busy: int | None = None
    rate: float | None = None
    """Results per second for this node's jobs, over the last 10 s."""
    path: str = ""
    """self, LAN 1 ms, direct 23 ms; empty when not reached."""
    address: str = ""
    version: str = ""
    python: str = ""
    invited_by: str = ""
    """Name of the inviter."""
    refusal: str = ""
    """Why it would not run this node's jobs, whatever they ask for: a role is missing; empty: it may."""
    level: str = "member"
    """self, trusted or member: how far it is trusted here; the blocked are not listed."""
    ban: str = ""
    """Why it gets no work of this node's jobs, because of what it computed; empty: it gets some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedView:
    """A node with all that it says of itself."""

    peer: PeerView
    attributes: Attributes = field(default_factory=dict)
    age_s: float | None = None
    """Since it said so; None: it never did."""
    trouble: str = ""
    """Why it did not answer this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NearbyView:
    """A node announced on this network that is not a member."""

    name: str
    public_key: bytes
    address: str


@dataclass(frozen=True, slots=True)
class TaskProgress:
    """How far a running task says that it is."""

    done: float
    total: float | None
    """None: it does not know."""
    note: str

    def __str__(self) -> str:
        count = f"{self.done:g}" if self.total is None else f"{self.done:g} of {self.total:g}"
        return f"{count} {self.note}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class TailView:
    """What a running task has printed."""

    node: str
    """Name of the node on which it runs."""
    attempt: int
    stdout_start: int
    """Where `stdout` begins in all that was printed."""
    stdout: bytes
    stderr_start: int
    stderr: bytes
    progress: TaskProgress | None = None
    quiet_s: float | None = None
    """For how long it has printed nothing and has not said how far it is; None where its node does not tell."""
    idle_s: float | None = None
    """For how long it has used no CPU, up to 10 s while it does; None where that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostAttemptView:
    """What an attempt has printed that came to no end that counts."""

    index: int
    attempt: int
    node: str
    why: str
    stdout_start: int
    """Where `stdout` begins in all that was printed."""
    stdout: bytes
    stderr_start: int
    stderr: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShare:
    """What one node does for one job."""

    node: str
    public_key: bytes
    running: int = 0
    done: int = 0
    failed: int = 0
    rate: float | None = None
    """Results per second over the last 10 s."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class CoordinatorView:
    """Who gives out the tasks of a job that is kept here for another node."""

    name: str
    is_owner: bool
    away_since: float | None = None
    """Unix seconds: when it was heard last; None: it is there."""
    next_name: str = ""
    """Who takes over; empty: nobody who could is there."""
    next_at: float | None = None
    """Unix seconds: when."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A job owned by this node."""

    job_id: bytes
    alias: str
    name: str
    state: str
    """waiting, running, done, failed or cancelled."""
    total: int | None
    """None until sealed."""
    added: int = 0
    done: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0
    cancelled: int = 0
    retried: int = 0
    """Attempts beyond the first, over all tasks."""
    submitted: float = 0.0
    finished: float | None = None
    by_node: tuple[NodeShare, ...] = ()
    exit_code: int | None = None
    """Exit code of the whole job (UX 1.6); None until it has ended."""
    halted: str = ""
    """Why it was stopped early; empty otherwise."""
    note: str = ""
    """The `client_note` of its submission, unread."""
    last_seq: int = 0
    """Number of the last task end; see `TaskView.seq`."""
    owner: str = ""
    """Name of the node that submitted it, when it is only kept here."""
    custodians: tuple[str, ...] = ()
    """Names of the nodes that keep it too, by rank."""
    coordinator: CoordinatorView | None = None
    """None: this node submitted it, or it is over."""
    claimed: int = 0
    """Of those done and failed: ends that its owner has not judged."""
    checking: int = 0
    """Of those waiting: claimed by nodes that are not trusted, and not believed yet."""
    doubt: str = ""
    """Whose results these are and what they wait for; empty when there are none."""
    doubt_fix: str = ""
    revoked: int = 0
    """Results that were believed until the job had ended, and no longer then."""
    disputed: int = 0
    """Tasks of which two trusted nodes found different results."""
    priority: int = 0
    deadline: float | None = None
    """When it is given up, Unix seconds."""
    lately_s: float = 0.0
    """Slot time that it had lately, while it is not over."""
    share: float | None = None
    """Of the slot time that all jobs of this node had lately; None where that means nothing."""

    @property
    def is_over(self) -> bool:
        """Sealed, and every task has ended."""
        return self.state in ("done", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task as it stands."""

    index: int
    generation: int
    state: str
    """waiting, running, done, failed or cancelled."""
    outcome: Outcome | None = None
    """Of the accepted attempt, or of the last failed one."""
    node_key: bytes = b""
    node_name: str = ""
    attempts: int = 0
    payload: bytes = b""
    """`execution.spec.TaskPayload`, encoded."""
    reason: str = ""
    """Why it failed or was cancelled, when the outcome does not say."""
    seq: int = 0
    """Its place, from 1, in the order in which the job's tasks ended; 0 while it has not.  The order survives a
    restart of the node.  A task that is retried ends again, under a new number."""


@dataclass(frozen=True, slots=True)
class BeliefView:
    """Whether a result is believed."""

    is_believed: bool
    why: str
    """Who ran it and agreed, or what it waits for: one sentence."""


TaskDone = TaskView
"""A task that has just ended: `seq` > 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    jobs: int
    freed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketView:
    text: str
    expires: float


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteView:
    id: bytes
    token: str
    """One line for scripts; empty for an invitation by words."""
    code: str
    """A number and a few words; empty for an invitation by token."""
    addresses: tuple[str, ...]
    """HOST:PORT at which the inviter may be reached, for joiners elsewhere."""
    expires: float
    group: str
    uses: int
    handle: str
    """What people call it: see `OpenInviteView`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenInviteView:
    """An invitation that can still be used."""

    id: bytes
    handle: str
    """What people call it: the number of its code, or the beginning of the id of a token."""
    uses_left: int
    expires: float
    is_mine: bool
    roles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AdmittedView:
    key: bytes
    name: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteState:
    ending: str
    """Why it admits nobody any more; empty: it is open."""
    admitted: tuple[AdmittedView, ...]
    tries_left: int
    refused: tuple[str, ...]
    """Those who did not know the words, of any invitation, and what they were told; the last ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorView:
    """A node that lets others into its group without an invitation."""

    name: str
    key: bytes
    address: str
    pinned: bytes | None
    """The key that was believed when this one was met first; None: never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinView:
    group: str
    inviter: str
    inviter_key: bytes
    address: str
    is_mine: bool = False
    """Both computers trust each other from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleView:
    """How much runs on this machine now, and why."""

    profile: str
    others_share: float
    """Of the cores, for the work of others."""
    own_runs: bool
    why: str
    """Why less than ever runs; empty: nothing holds it back."""
    since_s: float
    """Wall clock: since when."""
    resumes: str
    rules: tuple[tuple[str, str, str], ...]
    """(rule, what it sees, what follows)"""
    standing_still: int
    """Slots whose tasks stand still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustView:
    """What an installation is to this one."""

    key: bytes
    name: str
    level: Level
    is_self: bool = False
    is_up: bool = False
    roles: tuple[str, ...] | None = None
    """What it may do in the group; None: it is no member, or was not met yet."""
    inviter: str = ""
    inviter_key: bytes = b""
    is_removed: bool = False
    """It was removed from the group, for all members."""
    reason: str = ""
    set_at: float | None = None
    """Wall clock: when its level was set; None: nobody did."""
    heard: float | None = None
    """Wall clock: when it was heard last, under this name; None: it is up, or was never heard."""
    banned: str = ""
    """Why it gets no more work from here, because of its results; empty: it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyView:
    """What holds for all members of the group, and who said so."""

    group: str
    in_force: GroupPolicy
    set_by: tuple[str, ...] = ()
    """Names of those who made what holds: several, if they did not know of each other; none: nobody said anything."""
    set_at: float | None = None
    """Wall clock of the last of them, by its own word."""
    may_change: bool = False
    """Whether this node may."""
    own_accept: str = ""
    """This node's own condition, beside that of the group."""
    unknown_count: int = 0
    """Entries of the group's log of which this version does not know all that they say."""
    is_beyond: bool = False
    """One of them must not be passed over: no work of others is taken here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceEvent:
    """Something remarkable about the results of an installation."""

    at: float
    """Unix seconds."""
    job_id: bytes
    job: str
    """Its alias; empty when it was forgotten."""
    index: int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceView:
    """What is known here of the results of an installation."""

    claims: int = 0
    """Results that were checked, or still are."""
    agreed: int = 0
    """Of those: found by another node too."""
    wrong: int = 0
    """Contradicted by a trusted node."""
    standing: str = ""
    """newcomer, active, suspect or banned; empty when it has computed nothing since this node started."""
    banned: str = ""
    """Why it gets no more work; empty: it does."""
    banned_at: float | None = None
    events: tuple[EvidenceEvent, ...] = ()
    proof: bytes = b""
    """Evidence file that it signed two results under one lease; empty: there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplanationView:
    """A report, and the nodes that it is about."""

    needs: Needs
    peers: tuple[PeerView, ...]
    """One for each account of the report, in its order."""
    report: Report
    machines: tuple[Machine, ...]
    """What the report was made from, in its order."""
    left_out: int = 0
    """Nodes beyond EXPLAINED_NODES_MAX, of which nothing is said."""
    unheard: tuple[tuple[str, str], ...] = ()
    """Attributes that the job is about and that none of the nodes has, each with what is probably meant, if anything:
    a label or a plugin of a node that comes later may bring them."""
    slow: tuple[Slowness, ...] = ()
    """Of a job under way: why it is not done sooner."""

    def about(self, key: bytes) -> Report:
        """Return the report on one of the nodes alone: what would help there."""
        shown = zip(self.peers, self.machines, strict=True)
        return explain(self.needs, [machine for peer, machine in shown if peer.public_key == key])


class NodeFacade(Protocol):
    """A running node, from the inside."""

    @property
    def clock(self) -> Clock: ...

    @property
    def blobs(self) -> BlobStore: ...

    def status(self) -> NodeStatus: ...

    def peers(self) -> Sequence[PeerView]:
        """This node first, then by name."""

    def nearby(self) -> Sequence[NearbyView]:
        """By name."""

    async def describe(self, key: bytes, *, age_s: float = 0.0) -> DescribedView:
        """Ask a node for all that it says of itself, or use what it said at most `age_s` ago.

        Raises:
            UsageError: it is not known, code "no-such-node".
        """

    async def find(self, query: Query) -> Findings:
        """Ask the nodes that are known."""

    async def when(self, expression: Expression) -> Found:
        """Return a node of which it is true, once there is one.  Cancelled: nobody is asked any more."""

    async def explain(self, job: bytes | tuple[JobTerms, JobSpec], *, until_possible: bool = False) -> ExplanationView:
        """Ask the nodes what they have, and return what each says to a job, by id or not yet submitted.

        Args:
            until_possible: others are asked only if this node itself will never run it.

        Raises:
            UsageError: no such job, or it asks for what cannot be asked.
        """

    async def submit_job(self, terms: JobTerms, spec: JobSpec, *, client_note: str = "") -> bytes:
        """Accept a job; its id.  Durable on return.

        Raises:
            UsageError: it cannot mean anything, or too many jobs are active.
            StoreError: the store cannot take it.
        """

    async def add_tasks(self, job_id: bytes, payloads: Sequence[bytes]) -> int:
        """Add tasks; the index of the first.  Durable on return; waits while the node has enough to do.

        Raises:
            UsageError: no such job, it is sealed or over, or it would have too many tasks.
            StoreError: the store cannot take them; none was added.
        """

    async def seal_job(self, job_id: bytes) -> None:
        """No more tasks will come.  Repeating it changes nothing."""

    async def cancel(self, job_id: bytes, *, indices: Sequence[int] | None = None, now: bool = False) -> None:
        """Cancel all or these tasks; running ones finish unless `now`."""

    async def retry(self, job_id: bytes, *, indices: Sequence[int] | None = None, failed_only: bool = True) -> int:
        """Run tasks again; how many."""

    async def evidence(self, key: bytes) -> EvidenceView:
        """Return what is known here of the results of an installation."""

    async def bundle(self, job_id: bytes) -> bytes:
        """Return a job with all that was signed about it.

        Raises:
            UsageError: no such job, or it is not this node's, or too large.
        """

    def ticket(self, job_id: bytes) -> TicketView:
        """Make a ticket with which another member may look on at a job.

        Raises:
            UsageError: no such job.
            TrustError: it was submitted at another node.
        """

    async def attach(self, ticket: str) -> JobView:
        """Look on at a job of another node: bring here what is kept of it, now and as it goes on.

        Raises:
            UsageError: not a ticket.
            TrustError: it is not good.
            NodeUnavailable: nobody who keeps the job can be reached.
        """

    async def prune(self, *, older_than_s: float, drop_results: bool, dry_run: bool) -> PruneReport:
        """Forget jobs that ended longer ago than this."""

    def jobs(self) -> Sequence[JobView]:
        """Newest first."""

    def job(self, ref: str) -> JobView:
        """The job that an alias, a prefix of an id in hex, or "last" names.

        Raises:
            UsageError: none or several, code "no-job".
        """

    async def tasks(
        self, job_id: bytes, *, states: Collection[str] | None = None, after: int = -1, limit: int = 1000
    ) -> Sequence[TaskView]:
        """Up to `limit` tasks with an index greater than `after`, by index."""

    def belief(self, job_id: bytes, task: TaskView) -> BeliefView | None:
        """Why the result of a task, seen a moment ago, is believed or not yet; None: it has none, or its owner, which
        is another node, decides."""

    async def tail(self, job_id: bytes, index: int, *, attempt: int, offsets: tuple[int, int]) -> TailView | None:
        """What a running task has printed from these offsets (stdout, stderr) of this attempt on, at most the last 64
        KiB of each; all of it when another attempt runs.  None: it does not run, or its node does not answer."""

    async def lost_attempts(self, job_id: bytes) -> Sequence[LostAttemptView]:
        """What attempts of a job have printed that were lost, as far as it came here, by task and attempt: of each task
        the last LOST_ATTEMPTS_MAX."""

    async def finished(self, job_id: bytes, *, after: int, limit: int) -> Sequence[TaskDone]:
        """Up to `limit` task ends with a `seq` greater than `after`, by `seq`."""

    def watch(self, job_id: bytes, listener: Callable[[Sequence[TaskDone]], None]) -> Callable[[], None]:
        """Report task ends from now on, in the order of `seq`, without holes; the call returned ends it.

        The listener is called with nothing when only the job itself changed (sealed, cancelled, over).  It must
        be quick and must not raise.
        """

    async def invite(
        self, *, uses: int, expires_s: float, words: int = 0, roles: Sequence[str] = MEMBER_ROLES, is_mine: bool = False
    ) -> InviteView:
        """Open an invitation.

        Args:
            words: how many words its code has; 0: it is a token.
            roles: what the new members may do.
            is_mine: their computers are ours: both sides trust each other, and they may do what this one may.

        Raises:
            UsageError: a number is out of range, or too many are open.
            TrustError: this node may not invite.
        """

    def invite_state(self, invitation: bytes) -> InviteState:
        """What has become of an invitation.

        Raises:
            UsageError: it is not known, or no longer.
        """

    def open_invites(self) -> Sequence[OpenInviteView]:
        """Return the invitations that can still be used, oldest first."""

    def withdraw_invite(self, invitation: bytes) -> bool:
        """Take an invitation back; returns whether it was open."""

    async def doors(self, method: str, via: str) -> Sequence[DoorView]:
        """Return the nodes that let others in by a standing way (`trust.admission`), nearby or at HOST:PORT.

        Raises:
            NodeUnavailable: there is none.
            TrustError: this node is in a group already.
        """

    async def join(self, how: str | Entry, *, name: str | None = None) -> JoinView:
        """Redeem an invitation (a token or a code), or come in by a standing way.

        Raises:
            UsageError: it is neither.
            TrustError: refused by the inviter.
            NodeUnavailable: the inviter cannot be reached.
        """

    async def pause(self, for_s: float | None, *, now: bool) -> IdleView:
        """Take no work until `resume`, or for a while; `now`: what runs is ended and run elsewhere."""

    async def resume(self) -> bool:
        """Take work again; returns whether there was a pause."""

    async def idle(self) -> IdleView:
        """Look at the machine, and say how much runs on it and why."""

    async def set_comfort(self, *, profile: str, in_use: str, idle: str, battery: str, hours: str) -> IdleView:
        """Go by other rules of the machine's owner.

        Raises:
            UsageError, ConfigError: they cannot be.
        """

    def trust(self) -> Sequence[TrustView]:
        """This node first, then all installations that are known, by name."""

    def set_level(self, key: bytes, level: Level, *, reason: str) -> TrustView:
        """Trust an installation, treat it as any member, or block it: it is cut off at once.

        Raises:
            UsageError: it is this one, or too many have a level.
            IdentityError: the level cannot be kept; the old one stays.
        """

    def remove(self, key: bytes, *, reason: str) -> TrustView:
        """Remove a member from the group, for all members and until somebody invites it again.

        Raises:
            UsageError: it is no member that is known here.
            TrustError: this node may not remove it.
        """

    def set_roles(self, key: bytes, roles: Sequence[str], *, reason: str) -> TrustView:
        """Let a member do this in the group, and nothing else.

        Raises:
            UsageError: it is no member that is known here.
            TrustError: this node may not say so, or lacks a role that it would grant.
        """

    def name_heir(self, key: bytes) -> TrustView:
        """Let a member act as the founder of the group does, for when the founder's key is lost.

        Raises:
            UsageError: it is no member that is known here.
            TrustError: this node is neither the founder nor an heir.
        """

    def policy(self) -> PolicyView:
        """What holds for all members of the group."""

    def set_own_accept(self, condition: str) -> PolicyView:
        """Take jobs of others on this condition from now on, and end those that run here and are refused now.  A node
        that was started to take none goes on so.

        Raises:
            ConfigError: it means nothing.
        """

    def set_policy(self, policy: GroupPolicy) -> PolicyView:
        """Let something else hold for all members of the group.

        Raises:
            ConfigError: its condition is none.
            TrustError: this node may not say so, or the log of the group is full.
        """

    async def leave(self) -> None:
        """Give up membership; the node is alone in a group of its own from then on."""
