"""The control API: HTTP + JSON + server-sent events over a node, versioned under /v1.

One table, `calls.CALLS`, names every call; routes and the shipped OpenAPI document are made from it.  Errors are
``p2pc.error/1`` documents: what, why, fix, code.  Bodies have limits, uploads are read as fast as they are stored, and
a follower of events costs no more memory when it reads slowly.

Server-sent events are written by us rather than by sse-starlette: it learns of the process's end by patching uvicorn's
signal handling, which we replace, and by looking for it twice a second; and events are encoded once for all followers
and sent hundreds at a time, so that four lines of formatting are all that would be left to it.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol
from weakref import WeakValueDictionary

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from p2pcompute.api.result_keys import is_number
from p2pcompute.daemon.calls import (
    CALLS,
    AttachBody,
    CancelBody,
    EmptyBody,
    PruneBody,
    RetryBody,
    ShutdownBody,
)
from p2pcompute.daemon.events import JobEvents, Triggers
from p2pcompute.daemon.group_api import GroupApi
from p2pcompute.daemon.requests import (
    WAIT_S_MAX,
    JsonResponse,
    query_flag,
    query_int,
    query_number,
    query_states,
    query_text,
    read_body,
)
from p2pcompute.daemon.sink import ResultsSink
from p2pcompute.daemon.uploads import JobBody, Upload, UploadError, build_job, build_terms, decode_body
from p2pcompute.daemon.views import (
    belief_json,
    decode_note,
    described_json,
    encode_note,
    error_json,
    explanation_json,
    findings_json,
    job_json,
    peers_json,
    progress_of,
    status_json,
    task_event_json,
    task_json,
    time_text,
    version_json,
)
from p2pcompute.errors import (
    ChannelLost,
    NodeUnavailable,
    P2pcError,
    StoreError,
    TrustError,
    UsageError,
    VersionMismatch,
)
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.ids import parse_device_id
from p2pcompute.limits import (
    FIND_S_MAX,
    LIST_CONTENT_BYTES_MAX,
    LIST_ITEMS_MAX,
    QUESTION_ASKED_MAX,
    SUBMISSIONS_REMEMBERED,
)
from p2pcompute.node.facade import ExplanationView, JobView, NodeFacade, TaskView
from p2pcompute.node.views import find_node
from p2pcompute.resources.questions import Query, condition, ranking

log = logging.getLogger("p2pcompute.daemon")

TASK_STATES: Final = ("waiting", "running", "done", "failed", "cancelled")
JOB_STATES: Final = TASK_STATES


class Control(Protocol):
    """What the API may do to the process around the node."""

    def request_stop(self, *, drain: bool) -> None: ...


_STATUS_BY_CODE: Final = {
    "no-job": 404,
    "no-task": 404,
    "no-file": 404,
    "not-finished": 409,
    "moved": 409,
    "job-sealed": 409,
    "job-over": 409,
    "too-large": 413,
    "jobs-full": 429,
}


def status_of(error: P2pcError) -> int:
    """Return the HTTP status that fits an error."""
    if error.code in _STATUS_BY_CODE:
        return _STATUS_BY_CODE[error.code]
    match error:
        case TrustError():
            return 403
        case VersionMismatch():
            return 409
        case StoreError():
            return 507
        case NodeUnavailable() | ChannelLost():
            return 503
        case UsageError():
            return 400
    return 500


def _error_response(error: P2pcError) -> Response:
    more: dict[str, Any] = {}
    if isinstance(error, UploadError):
        more = {"line": error.line, "first": error.first, "count": error.count}
    # A body that was not read to its end would otherwise be received and thrown away.
    return JsonResponse(error_json(error, **more), status_code=status_of(error), headers={"connection": "close"})


def _check_indices(indices: list[int] | None, job: JobView) -> list[int] | None:
    for index in indices or ():
        if not 0 <= index < job.added:
            raise UsageError(f"job {job.alias} has no task {index}", f"it has {job.added}", code="no-task")
    return indices


class Api(GroupApi):
    """Serves the calls of `CALLS`; each method answers one."""

    def __init__(self, node: NodeFacade, control: Control, sink: ResultsSink, *, takes_jobs: bool = True) -> None:
        super().__init__(node)
        self._takes_jobs = takes_jobs
        self._control = control
        self._sink = sink
        self.job_events = JobEvents(node, sink)
        self.triggers = Triggers(node)
        self._uploads: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        self._submissions: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._requests: dict[str, bytes] | None = None
        """Jobs by what their submissions are known by; None: to be read from their notes."""

    # --- node -------------------------------------------------------------------------------------

    async def version(self, request: Request) -> Response:
        return JsonResponse(version_json())

    async def openapi(self, request: Request) -> Response:
        return Response(OPENAPI_FILE.read_bytes(), media_type="application/json")

    async def status(self, request: Request) -> Response:
        return JsonResponse(status_json(self._node))

    async def peers(self, request: Request) -> Response:
        return JsonResponse(peers_json(self._node, with_nearby=query_flag(request, "nearby")))

    async def peer(self, request: Request) -> Response:
        key = parse_device_id(request.path_params["ref"])
        described = await self._node.describe(key, age_s=query_number(request, "max_age_s", 0.0, WAIT_S_MAX))
        return JsonResponse(described_json(described, self._node.clock.wall()))

    async def find(self, request: Request) -> Response:
        rank = request.query_params.get("rank")
        query = Query(
            expression=condition(query_text(request, "expr")),
            rank=ranking(rank) if rank else None,
            answers_max=min(max(1, query_int(request, "max_answers", 20)), LIST_ITEMS_MAX),
            time_s=query_number(request, "max_time_s", 2.0, FIND_S_MAX),
            age_s=query_number(request, "max_age_s", 60.0, WAIT_S_MAX),
            asked_max=max(0, query_int(request, "max_asked", QUESTION_ASKED_MAX)),
        )
        return JsonResponse(findings_json(await self._node.find(query), query, self._node))

    async def when(self, request: Request) -> Response:
        expression = condition(query_text(request, "expr"))
        limit_s = None
        if "timeout_s" in request.query_params:
            limit_s = query_number(request, "timeout_s", 0.0, WAIT_S_MAX)
        return StreamingResponse(
            self.triggers.follow(expression, limit_s),
            media_type="text/event-stream",
            headers={"cache-control": "no-store"},
        )

    async def shutdown(self, request: Request) -> Response:
        body = decode_body(await read_body(request), ShutdownBody)
        self._control.request_stop(drain=body.drain)
        return JsonResponse({}, status_code=202)

    # --- jobs -------------------------------------------------------------------------------------

    def _job(self, request: Request) -> JobView:
        return self._node.job(request.path_params["ref"])

    def _job_json(self, job: JobView) -> dict[str, Any]:
        return self._sink.describe(job_json(job))

    def _check_takes_jobs(self) -> None:
        """Refuse what would have to run.

        Raises:
            NodeUnavailable: this node only shows what is kept.
        """
        if not self._takes_jobs:
            raise NodeUnavailable("no node is running here", "what is kept is only being looked at", "p2pc node start")

    def _check_is_ours_alone(self, job: JobView) -> None:
        """Refuse to cancel what others go on with and would not hear of: the job would have two ends.

        Raises:
            NodeUnavailable: this node only shows what is kept, and others keep the job too.
        """
        if not self._takes_jobs and not job.owner and job.custodians and not job.is_over:
            raise NodeUnavailable(
                f"{job.alias} was not cancelled: no node is running here to tell the others who keep it",
                f"{', '.join(job.custodians)} may go on with it meanwhile",
                f"p2pc node start, then: p2pc cancel {job.alias}",
                code="kept-elsewhere",
            )

    async def submit(self, request: Request) -> Response:
        self._check_takes_jobs()
        body = decode_body(await read_body(request), JobBody)
        if not body.request:
            return self._submitted(await self._submit(body))
        lock = self._submissions.setdefault(body.request, asyncio.Lock())
        async with lock:
            known = self._of_request(body.request)
            return self._submitted(known or await self._submit(body))

    def _submitted(self, job: JobView) -> Response:
        return JsonResponse({"id": job.job_id.hex(), "alias": job.alias}, status_code=201)

    def _of_request(self, name: str) -> JobView | None:
        """Return the job that this submission has made already."""
        if self._requests is None:
            newest = itertools.islice(self._node.jobs(), SUBMISSIONS_REMEMBERED)
            self._requests = {decode_note(job.note).request: job.job_id for job in reversed(list(newest))}
        job_id = self._requests.get(name)
        try:
            return None if job_id is None else self._node.job(job_id.hex())
        except UsageError:  # it was pruned
            return None

    async def _submit(self, body: JobBody) -> JobView:
        node = self._node
        terms, spec, note = await build_job(body, node.blobs, node.clock.wall(), node.peers(), node.trust())
        reserved = None
        if note.results is not None:
            reserved = await self._sink.reserve(note.results)
            note.results = reserved.results
        try:
            job_id = await node.submit_job(terms, spec, client_note=encode_note(note))
            if reserved is not None:
                reserved.hand_over(job_id)
        finally:
            if reserved is not None:
                reserved.free()
        if body.request and self._requests is not None:
            if len(self._requests) >= SUBMISSIONS_REMEMBERED:
                self._requests.pop(next(iter(self._requests)))
            self._requests[body.request] = job_id
        job = node.job(job_id.hex())
        self._sink.begin(job, is_new=True)
        return job

    async def jobs(self, request: Request) -> Response:
        states = query_states(request, JOB_STATES)
        limit = min(query_int(request, "limit", 1000), LIST_ITEMS_MAX)
        with_all = query_flag(request, "all") or states is not None
        items: list[dict[str, Any]] = []
        for job in self._node.jobs():
            if len(items) >= limit:
                break
            if (with_all or not job.is_over) and (states is None or job.state in states):
                items.append(self._job_json(job) | await self._as_of(job))
        return JsonResponse({"schema": "p2pc.jobs/1", "items": items})

    async def job(self, request: Request) -> Response:
        job = self._job(request)
        return JsonResponse(self._job_json(job) | await self._as_of(job))

    async def _as_of(self, job: JobView) -> dict[str, Any]:
        """Return until when it is known what became of a job, where no node runs: until its last task ended."""
        if self._takes_jobs or job.is_over:
            return {}
        last = job.submitted
        for end in await self._node.finished(job.job_id, after=max(0, job.last_seq - 1), limit=1):
            if end.outcome is not None and end.outcome.started_wall:
                last = max(last, end.outcome.started_wall + end.outcome.runtime_s)
        return {"as_of": time_text(last)}

    async def explain_job(self, request: Request) -> Response:
        job = self._job(request)
        return self._explanation(request, await self._node.explain(job.job_id), job)

    async def explain(self, request: Request) -> Response:
        body = decode_body(await read_body(request), JobBody)
        job = build_terms(body, self._node.clock.wall(), self._node.peers(), self._node.trust())
        is_check = query_flag(request, "check")
        return self._explanation(request, await self._node.explain(job, until_possible=is_check), None)

    def _explanation(self, request: Request, explained: ExplanationView, job: JobView | None) -> Response:
        ref = request.query_params.get("node")
        only = find_node(explained.peers, ref, self._node.trust()).public_key if ref else None
        return JsonResponse(explanation_json(explained, job, only))

    async def add(self, request: Request) -> Response:
        job = self._job(request)
        at = query_int(request, "at", -1)
        lock = self._uploads.setdefault(job.job_id, asyncio.Lock())
        async with lock:
            upload = Upload(self._node, job.job_id, decode_note(job.note).kind, at=at if at >= 0 else None)
            await upload.take(request.stream())
        return JsonResponse({"first": upload.first, "count": upload.count})

    async def seal(self, request: Request) -> Response:
        decode_body(await read_body(request), EmptyBody)
        await self._node.seal_job(self._job(request).job_id)
        return JsonResponse({})

    async def cancel(self, request: Request) -> Response:
        body = decode_body(await read_body(request), CancelBody)
        job = self._job(request)
        self._check_is_ours_alone(job)
        await self._node.cancel(job.job_id, indices=_check_indices(body.indices, job), now=body.now)
        return JsonResponse(self._job_json(self._job(request)))

    async def retry(self, request: Request) -> Response:
        self._check_takes_jobs()
        body = decode_body(await read_body(request), RetryBody)
        job = self._job(request)
        count = await self._node.retry(job.job_id, indices=_check_indices(body.indices, job), failed_only=body.failed)
        if count:
            self._sink.begin(self._job(request))
        return JsonResponse({"count": count})

    async def bundle(self, request: Request) -> Response:
        data = await self._node.bundle(self._job(request).job_id)
        return Response(data, media_type="application/octet-stream")

    async def ticket(self, request: Request) -> Response:
        decode_body(await read_body(request), EmptyBody)
        ticket = self._node.ticket(self._job(request).job_id)
        return JsonResponse({"ticket": ticket.text, "expires": time_text(ticket.expires)})

    async def attach(self, request: Request) -> Response:
        body = decode_body(await read_body(request), AttachBody)
        self._check_takes_jobs()
        job = await self._node.attach(body.ticket)
        return JsonResponse({"id": job.job_id.hex(), "alias": job.alias})

    async def prune(self, request: Request) -> Response:
        body = decode_body(await read_body(request), PruneBody)
        if body.older_than_s < 0:
            raise UsageError("older_than_s cannot be negative", code="bad-request")
        report = await self._node.prune(
            older_than_s=body.older_than_s, drop_results=body.drop_results, dry_run=body.dry_run
        )
        return JsonResponse({"jobs": report.jobs, "freed_bytes": report.freed_bytes})

    # --- tasks ------------------------------------------------------------------------------------

    async def tasks(self, request: Request) -> Response:
        job = self._job(request)
        limit = min(max(1, query_int(request, "limit", 1000)), LIST_ITEMS_MAX)
        found = await self._node.tasks(
            job.job_id, states=query_states(request, TASK_STATES), after=query_int(request, "after", -1), limit=limit
        )
        kind = decode_note(job.note).kind
        room = LIST_CONTENT_BYTES_MAX if query_int(request, "content", 0) else 0
        items = []
        for task in found:
            outcome = task.outcome
            if outcome is not None:
                room -= len(outcome.value) + len(outcome.stdout) + len(outcome.stderr)
            items.append(task_event_json(task, kind) if room > 0 else task_json(task, kind))
        return JsonResponse(
            {
                "schema": "p2pc.tasks/1",
                "items": items,
                "next": found[-1].index if len(found) >= limit else None,
            }
        )

    async def _task(self, request: Request) -> tuple[JobView, TaskView]:
        job, index = self._job(request), request.path_params["index"]
        found = await self._node.tasks(job.job_id, after=index - 1, limit=1)
        if not found or found[0].index != index:
            raise UsageError(f"job {job.alias} has no task {index}", f"it has {job.added}", code="no-task")
        return job, found[0]

    async def task(self, request: Request) -> Response:
        job, task = await self._task(request)
        shown = task_json(task, decode_note(job.note).kind)
        belief = belief_json(self._node.belief(job.job_id, task))
        return JsonResponse({"schema": "p2pc.task/1", **shown, "belief": belief})

    async def stdout(self, request: Request) -> Response:
        return await self._content(request, "stdout")

    async def stderr(self, request: Request) -> Response:
        return await self._content(request, "stderr")

    async def value(self, request: Request) -> Response:
        return await self._content(request, "value")

    async def tail(self, request: Request) -> Response:
        job, index = self._job(request), request.path_params["index"]
        attempt, *offsets = (max(0, query_int(request, name, 0)) for name in ("attempt", "stdout", "stderr"))
        found = await self._node.tail(job.job_id, index, attempt=attempt, offsets=(offsets[0], offsets[1]))
        return JsonResponse(
            {
                "schema": "p2pc.tail/1",
                "index": index,
                "node": None if found is None else found.node,
                "attempt": None if found is None else found.attempt,
                "stdout_start": 0 if found is None else found.stdout_start,
                "stdout_b64": "" if found is None else base64.b64encode(found.stdout).decode(),
                "stderr_start": 0 if found is None else found.stderr_start,
                "stderr_b64": "" if found is None else base64.b64encode(found.stderr).decode(),
                "progress": None if found is None else progress_of(found.progress),
                "quiet_s": None if found is None else found.quiet_s,
                "idle_s": None if found is None else found.idle_s,
            }
        )

    async def lost(self, request: Request) -> Response:
        items = [
            {
                "index": lost.index,
                "attempt": lost.attempt,
                "node": lost.node,
                "why": lost.why,
                "stdout_start": lost.stdout_start,
                "stdout_b64": base64.b64encode(lost.stdout).decode(),
                "stderr_start": lost.stderr_start,
                "stderr_b64": base64.b64encode(lost.stderr).decode(),
            }
            for lost in await self._node.lost_attempts(self._job(request).job_id)
        ]
        return JsonResponse({"schema": "p2pc.lost/1", "items": items})

    async def _content(self, request: Request, name: str) -> Response:
        job, task = await self._task(request)
        if task.outcome is None:
            raise UsageError(
                f"{job.alias}/{task.index} has no {name}", task.reason or f"it is {task.state}", code="not-finished"
            )
        blob: tuple[bytes, int] | None = getattr(task.outcome, f"{name}_blob")
        if blob is None:
            return Response(getattr(task.outcome, name), media_type="application/octet-stream")
        return await self._blob(BlobRef(*blob))

    async def file(self, request: Request) -> Response:
        job, task = await self._task(request)
        name = request.path_params["name"]
        for file in task.outcome.files if task.outcome is not None else ():
            if file.name == name:
                response = await self._blob(BlobRef(file.digest, file.size))
                response.headers["p2pc-mode"] = f"{file.mode:o}"
                return response
        raise UsageError(f'{job.alias}/{task.index} has no file "{name}"', code="no-file")

    async def _blob(self, ref: BlobRef) -> Response:
        """Stream a blob.  One that is missing is found out before the answer begins."""
        blobs = self._node.blobs
        if not await blobs.has(ref):
            if blobs.is_damaged(ref):
                raise StoreError(
                    "blob damaged: this content was altered on the disk of this machine",
                    f"blob {ref.digest.hex()[:16]} ({ref.size} bytes) does not fit its digest; it was moved aside",
                    "check this disk; run the task again: p2pc retry",
                    code="blob-damaged",
                )
            raise StoreError("this content is not on this machine any more", "", "run the task again", code="no-file")
        return StreamingResponse(
            blobs.stream(ref), media_type="application/octet-stream", headers={"content-length": str(ref.size)}
        )

    async def events(self, request: Request) -> Response:
        job = self._job(request)
        after = max(0, query_int(request, "after", _last_event_id(request)))
        return StreamingResponse(
            self.job_events.follow(job, after),
            media_type="text/event-stream",
            headers={"cache-control": "no-store"},
        )


def _last_event_id(request: Request) -> int:
    text = request.headers.get("last-event-id", "0")
    return int(text) if is_number(text) else 0


OPENAPI_FILE: Final = Path(__file__).with_name("openapi.json")


LOCAL_HOSTS: Final = ("", "localhost", "p2pc", "127.0.0.1", "[::1]")
"""What a request may take this node for."""


def refuse_browsers(headers: Mapping[str, str]) -> None:
    """Refuse what a web page may have made: browsers do not reach this socket, unless somebody leads them there.

    Raises:
        TrustError: it says so, or names a host by which no command of ours asks (DNS rebinding).
    """
    host = re.sub(r":[0-9]*$", "", headers.get("host", ""))
    if host not in LOCAL_HOSTS or "origin" in headers or "sec-fetch-mode" in headers:
        raise TrustError(
            "this socket is for commands on this machine, not for web pages",
            f"the request is for {host[:80]!r}" + (" and was made by a browser" if host in LOCAL_HOSTS else ""),
            "ask at http://localhost",
            code="browser",
        )


def _guarded(serve: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Answer errors as documents.  Anything unexpected is our bug: logged, answered 500, and the node goes on."""

    async def endpoint(request: Request) -> Response:
        try:
            refuse_browsers(request.headers)
            return await serve(request)
        except P2pcError as error:
            if status_of(error) == 500:
                log.error("%s %s failed: %s", request.method, request.url.path, error)
            return _error_response(error)
        except ClientDisconnect:
            log.debug("%s %s was cut off", request.method, request.url.path)
            return Response(status_code=400)
        except Exception as error:  # a bug of ours: it is logged, and the caller is told
            log.exception("%s %s failed", request.method, request.url.path)
            return _error_response(
                P2pcError(
                    "a bug in p2pc",
                    f"{type(error).__name__}: {error}",
                    "please report it, with the node's log",
                    code="bug",
                )
            )

    return endpoint


async def _routing_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    what = {404: f"there is no call {request.url.path}", 405: f"{request.url.path} does not take {request.method}"}
    refusal = UsageError(what.get(status, "the request is refused"), "", "see GET /v1/openapi.json", code="no-call")
    return JsonResponse(error_json(refusal), status_code=status)


def build_app(
    node: NodeFacade, control: Control, sink: ResultsSink, *, takes_jobs: bool = True
) -> tuple[Starlette, Api]:
    """Return the application over a node, and the part of it that must be closed before the node stops."""
    api = Api(node, control, sink, takes_jobs=takes_jobs)
    routes = [Route(call.path, _guarded(getattr(api, call.name)), methods=[call.method]) for call in CALLS]
    return Starlette(routes=routes, exception_handlers={HTTPException: _routing_error}), api
