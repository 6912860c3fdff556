"""The calls of the control API as a table, and the shapes of their bodies; routes and the document are made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from p2pcompute.daemon.uploads import JobBody
from p2pcompute.limits import INVITE_TTL_S


class CancelBody(msgspec.Struct, forbid_unknown_fields=True):
    indices: list[int] | None = None
    now: bool = False


class RetryBody(msgspec.Struct, forbid_unknown_fields=True):
    indices: list[int] | None = None
    failed: bool = True


class PruneBody(msgspec.Struct, forbid_unknown_fields=True):
    older_than_s: float
    drop_results: bool = False
    dry_run: bool = False


class AttachBody(msgspec.Struct, forbid_unknown_fields=True):
    ticket: str


class InviteBody(msgspec.Struct, forbid_unknown_fields=True):
    uses: int = 1
    expires_s: float = INVITE_TTL_S
    words: int = 0
    role: Literal["both", "worker", "submitter"] = "both"
    mine: bool = False


class EntryBody(msgspec.Struct, forbid_unknown_fields=True):
    method: Literal["psk", "key", "nearby", "open"]
    proof: str = ""
    """In hexadecimal: the pre-shared key, or the statement of an OpenSSH key."""
    via: str = ""
    inviter_id: str | None = None


class JoinBody(msgspec.Struct, forbid_unknown_fields=True):
    token: str = ""
    entry: EntryBody | None = None
    name: str | None = None


class LevelBody(msgspec.Struct, forbid_unknown_fields=True):
    level: Literal["trusted", "member", "blocked"]
    reason: str = ""


class RemoveBody(msgspec.Struct, forbid_unknown_fields=True):
    reason: str = ""


class PolicyBody(msgspec.Struct, forbid_unknown_fields=True):
    accept: str | None = None
    """None: as it is."""
    open: bool | None = None
    puzzle: int | None = None
    """Bits of the work at the door of an open group."""
    own_accept: str | None = None
    """This node's own condition, until it is started again; None: as it is."""


class RolesBody(msgspec.Struct, forbid_unknown_fields=True):
    roles: list[Literal["submit", "work", "invite", "admin"]]
    reason: str = ""


class PauseBody(msgspec.Struct, forbid_unknown_fields=True):
    for_s: float | None = None
    now: bool = False


class ComfortBody(msgspec.Struct, forbid_unknown_fields=True):
    profile: str
    in_use: str = ""
    idle: str = ""
    battery: str = ""
    hours: str = "any"


class ShutdownBody(msgspec.Struct, forbid_unknown_fields=True):
    drain: bool = True


class EmptyBody(msgspec.Struct, forbid_unknown_fields=True):
    """No fields."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the API."""

    method: str
    path: str
    name: str
    """Method of `Api` that serves it, and the operation's id."""
    summary: str
    answer: str
    """Schema name of the answer, or its media type."""
    body: type[msgspec.Struct] | str | None = None
    """Shape of a JSON body, or the media type of a streamed one."""
    query: tuple[tuple[str, str, str], ...] = ()
    """(name, JSON type, description)"""


_PAGE: Final = (("after", "integer", "Only items after this index"), ("limit", "integer", "At most so many items"))

CALLS: Final[tuple[Call, ...]] = (
    Call("GET", "/v1/version", "version", "Version and protocol range of the node", "object"),
    Call("GET", "/v1/openapi.json", "openapi", "This document", "object"),
    Call("GET", "/v1/status", "status", "The node, its group, peers and jobs in short", "p2pc.status/1"),
    Call(
        "GET",
        "/v1/peers",
        "peers",
        "Members of the group, this node first",
        "p2pc.peers/1",
        query=(("nearby", "boolean", "Also nodes on this network that are not members"),),
    ),
    Call(
        "GET",
        "/v1/peers/{ref}",
        "peer",
        "A member, named by its id, with all that it says of itself",
        "p2pc.peer/1",
        query=(("max_age_s", "number", "What it said so long ago will do; 0: it is asked"),),
    ),
    Call(
        "GET",
        "/v1/find",
        "find",
        "Nodes of which an expression is true",
        "p2pc.find/1",
        query=(
            ("expr", "string", "Condition over node.*, as CEL or in shorthand"),
            ("rank", "string", "Expression; the nodes with the highest values come, highest first"),
            ("max_answers", "integer", "At most so many nodes"),
            ("max_time_s", "number", "How long nodes are asked"),
            ("max_age_s", "number", "How old what is known of a node may be"),
            ("max_asked", "integer", "At most so many nodes are asked"),
        ),
    ),
    Call(
        "GET",
        "/v1/when",
        "when",
        "Events `found`, with a node, as soon as an expression is true of one, or `timeout`; before it `unheard`, with "
        "names that no node has",
        "text/event-stream",
        query=(
            ("expr", "string", "Condition over node.*, as CEL or in shorthand"),
            ("timeout_s", "number", "How long to wait; for ever without it"),
        ),
    ),
    Call("POST", "/v1/jobs", "submit", "Accept a job; durable when answered", "object", body=JobBody),
    Call(
        "GET",
        "/v1/jobs",
        "jobs",
        "Jobs, newest first",
        "p2pc.jobs/1",
        query=(
            ("all", "boolean", "Also jobs that are over"),
            ("state", "string", "Only these, comma-separated"),
            ("limit", "integer", "At most so many items"),
        ),
    ),
    Call("GET", "/v1/jobs/{ref}", "job", "One job", "p2pc.job/1"),
    Call(
        "GET",
        "/v1/jobs/{ref}/explanation",
        "explain_job",
        "What every node says to a job, and what would help",
        "p2pc.explanation/1",
        query=(("node", "string", "Only this node, by name or id"),),
    ),
    Call(
        "POST",
        "/v1/explanation",
        "explain",
        "The same for a job that is not submitted; its files do not matter",
        "p2pc.explanation/1",
        body=JobBody,
        query=(
            ("node", "string", "Only this node, by name or id"),
            ("check", "boolean", "Ask others only if this node will never run it"),
        ),
    ),
    Call(
        "POST",
        "/v1/jobs/{ref}/tasks",
        "add",
        "Add tasks, one JSON object a line; durable when answered",
        "object",
        body="application/jsonl",
        query=(("at", "integer", "Number of tasks that the job must have now, to go on after a cut upload"),),
    ),
    Call("POST", "/v1/jobs/{ref}/seal", "seal", "No more tasks will come", "object", body=EmptyBody),
    Call(
        "GET",
        "/v1/jobs/{ref}/tasks",
        "tasks",
        "Tasks by index",
        "p2pc.tasks/1",
        query=(
            ("state", "string", "Only these states, comma-separated"),
            ("content", "integer", "1: with what they printed and returned, where that is short"),
            *_PAGE,
        ),
    ),
    Call("GET", "/v1/jobs/{ref}/tasks/{index:int}", "task", "One task", "p2pc.task/1"),
    Call("GET", "/v1/jobs/{ref}/lost", "lost", "What attempts have printed that were lost", "p2pc.lost/1"),
    Call(
        "GET", "/v1/jobs/{ref}/tasks/{index:int}/stdout", "stdout", "What the task printed", "application/octet-stream"
    ),
    Call(
        "GET",
        "/v1/jobs/{ref}/tasks/{index:int}/stderr",
        "stderr",
        "What the task printed as errors",
        "application/octet-stream",
    ),
    Call(
        "GET",
        "/v1/jobs/{ref}/tasks/{index:int}/tail",
        "tail",
        "What a running task has printed so far",
        "p2pc.tail/1",
        query=(
            ("attempt", "integer", "The attempt that the offsets are of"),
            ("stdout", "integer", "Only what comes after so many bytes"),
            ("stderr", "integer", "Only what comes after so many bytes"),
        ),
    ),
    Call(
        "GET",
        "/v1/jobs/{ref}/tasks/{index:int}/value",
        "value",
        "The function's pickled value or exception",
        "application/octet-stream",
    ),
    Call(
        "GET",
        "/v1/jobs/{ref}/tasks/{index:int}/files/{name:path}",
        "file",
        "A file that the task made",
        "application/octet-stream",
    ),
    Call(
        "GET",
        "/v1/jobs/{ref}/events",
        "events",
        "Events `task`, `progress`, `end`, `resync`, `error`",
        "text/event-stream",
        query=(("after", "integer", "Only task ends after this number"),),
    ),
    Call("POST", "/v1/jobs/{ref}/cancel", "cancel", "Cancel all or some tasks", "object", body=CancelBody),
    Call("POST", "/v1/jobs/{ref}/retry", "retry", "Run tasks again", "object", body=RetryBody),
    Call("GET", "/v1/jobs/{ref}/bundle", "bundle", "All that was signed about a job", "application/octet-stream"),
    Call("POST", "/v1/jobs/{ref}/ticket", "ticket", "Let another node look on at a job", "object", body=EmptyBody),
    Call("POST", "/v1/attach", "attach", "Look on at a job of another node", "object", body=AttachBody),
    Call("POST", "/v1/prune", "prune", "Forget jobs that ended long ago", "object", body=PruneBody),
    Call("POST", "/v1/invite", "invite", "Open an invitation", "object", body=InviteBody),
    Call("GET", "/v1/invites", "invites", "Invitations that can still be used", "p2pc.invites/1"),
    Call("GET", "/v1/invites/{id}", "invite_state", "What has become of an invitation", "object"),
    Call("POST", "/v1/invites/{id}/withdraw", "withdraw_invite", "Take an invitation back", "object", body=EmptyBody),
    Call(
        "GET",
        "/v1/doors",
        "doors",
        "Nodes that let others in by a standing way",
        "object",
        query=(
            ("method", "string", "psk, key, nearby or open"),
            ("via", "string", "HOST:PORT; else the local network"),
        ),
    ),
    Call("POST", "/v1/join", "join", "Redeem an invitation, or come in by a standing way", "object", body=JoinBody),
    Call("GET", "/v1/idle", "idle", "How much runs on this machine now, and why", "p2pc.idle/1"),
    Call("POST", "/v1/pause", "pause", "Take no work for a while", "p2pc.idle/1", body=PauseBody),
    Call("POST", "/v1/resume", "resume", "Take work again", "object", body=EmptyBody),
    Call("POST", "/v1/comfort", "set_comfort", "Rules of the machine's owner", "p2pc.idle/1", body=ComfortBody),
    Call("GET", "/v1/trust", "trust", "What every installation is to this one", "p2pc.trust/1"),
    Call("GET", "/v1/trust/{ref}/evidence", "evidence", "What is known of a node's results", "p2pc.evidence/1"),
    Call("POST", "/v1/trust/{ref}", "set_level", "Trust an installation, or block it", "object", body=LevelBody),
    Call("POST", "/v1/members/{ref}/remove", "remove", "Remove a member from the group", "object", body=RemoveBody),
    Call("POST", "/v1/members/{ref}/roles", "set_roles", "What a member may do", "object", body=RolesBody),
    Call("POST", "/v1/members/{ref}/heir", "name_heir", "Let a member act as the founder", "object", body=EmptyBody),
    Call("GET", "/v1/policy", "policy", "What holds for all members of the group", "p2pc.policy/1"),
    Call("POST", "/v1/policy", "set_policy", "Let something else hold for them", "p2pc.policy/1", body=PolicyBody),
    Call("POST", "/v1/leave", "leave", "Give up membership", "object", body=EmptyBody),
    Call("POST", "/v1/shutdown", "shutdown", "Stop the node", "object", body=ShutdownBody),
)
