"""The course of `p2pc run`: a node is found, the job submitted, and its tasks follow while results come in."""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from p2pcompute.api.result_keys import DoneKeys, read_done_keys
from p2pcompute.api.result_target import ResultsTarget
from p2pcompute.cli.command import Reference
from p2pcompute.cli.inputs import Row
from p2pcompute.cli.output import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    count_text,
    plural,
    print_json,
    say,
)
from p2pcompute.cli.plan import (
    PEEKED_ROWS,
    Chunker,
    Function,
    Tally,
    TaskMaker,
    check_executable,
    check_fetch_names,
    check_local_files,
    check_module_files,
    check_readable,
    file_line,
    make_lines,
    what_varies,
)
from p2pcompute.cli.replacement import unknown_names
from p2pcompute.cli.run_request import Request
from p2pcompute.errors import P2pcError, UsageError

if TYPE_CHECKING:
    from p2pcompute.execution.locks import Lock


UPLOAD_LINES: Final = 512
UPLOAD_BYTES: Final = 1024 * 1024
"""Tasks sent in one request: kept until the node has them."""
NEEDS: Final = (
    *("cpus", "mem_bytes", "gpus", "disk_bytes", "packages_b64", "platforms", "is_built"),
    *("sandbox", "network"),
)
"""Of a job's spec: what a task asks of a node."""


def say_unknown_names(request: Request, row: Row) -> None:
    """Say what looks like a replacement string and is none."""
    unknown = [] if request.kind == "function" else unknown_names(request.words, row.names)
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in row.names if name.isidentifier())
        why = f"the inputs have {known}" if known else "names come with --header :"
        left = "is no replacement string and stays" if len(unknown) == 1 else "are no replacement strings and stay"
        say(f"note: {' '.join(unknown)} {left} as typed; {why}", level=1)


@dataclass(slots=True)
class Run:
    """One run, from its first input to its exit code."""

    request: Request
    maker: TaskMaker
    function: Function | None
    lock: Lock | None
    """Of its packages."""
    tally: Tally = field(default_factory=Tally)
    started: float = field(default_factory=time.monotonic)
    _chunker: Chunker = field(init=False)
    _connection: Any = None
    """Of the node, once it was needed."""
    _is_new: bool = False
    """The node was started for this run."""
    _failures: Any = None
    _bans_hint: str = ""
    """Who was banned meanwhile."""
    _is_stopping: bool = False
    _is_tallied: bool = False
    """What was done before has been said."""

    def go(self) -> int:
        request = self.request
        self._chunker = Chunker(None if request.batch == "auto" else int(request.batch))
        if request.results is not None:
            code = self._finish_earlier(request.results)
            if code is not None:
                return code
        earlier = self._read_earlier()
        if request.files.send and request.inputs.is_repeatable:
            self._check_files()
        rows = request.inputs.rows()
        # Of a slow source no more than the first row is waited for.
        peeked = list(itertools.islice(rows, PEEKED_ROWS if request.inputs.is_repeatable else 1))
        if peeked:
            say_unknown_names(request, peeked[0])
        if request.results is not None and request.results.files_dir is not None:
            check_fetch_names(peeked, request.files)
        lines = make_lines(
            itertools.chain(peeked, rows), self.maker, self.tally, earlier=earlier, retry_failed=request.retry_failed
        )
        if earlier is not None and request.inputs.is_repeatable:
            self._say_tally(earlier)
        first = next(lines, None)
        if first is None:
            return self._nothing_to_do()
        return self._submit(peeked, itertools.chain([first], lines))

    def explain(self) -> int:
        """Show which nodes could run the job, and why the others cannot."""
        from p2pcompute.cli.explain import print_explanation

        connection = self._connect()
        document = self._ask_explanation(connection, connection.request("GET", "/v1/status"))
        return print_explanation(document, as_json=self.request.is_json)

    def _ask_explanation(self, connection: Any, status: Mapping[str, Any], query: str = "") -> dict[str, Any]:
        body = self._job_body(status)
        body["spec"] = {name: body["spec"][name] for name in NEEDS if name in body["spec"]}
        answer: dict[str, Any] = connection.request(
            "POST", f"/v1/explanation{query}", body | {"results": None, "note": {}}
        )
        return answer

    def _check_can_run(self, connection: Any, status: Mapping[str, Any]) -> None:
        """A job that asks for something must be possible somewhere.

        Raises:
            NoEligibleNode: every node that is known will never run it.
            UsageError: it asks for an attribute that no node has, with a name like one that there is.
        """
        request = self.request
        is_special = request.kind in ("wasm", "container") or request.has_network or request.sandbox == "process"
        if request.needs is None and self.lock is None and not (request.on or request.not_on or is_special):
            return
        from p2pcompute.cli.explain import never_error, unheard_lines

        document = self._ask_explanation(connection, status, "?check=1")
        if document["can_never_run"]:
            raise never_error(document)
        for line in unheard_lines(document):
            say(line, level=1)

    def _finish_earlier(self, target: ResultsTarget) -> int | None:
        """Let an unfinished job of an earlier run that writes there end first; an exit code when the user stopped it.

        Raises:
            UsageError: a job of another installation writes there, or one that cannot be carried on from here.
        """
        from p2pcompute.api.result_claims import check_claims
        from p2pcompute.places import find_paths

        for job_id in sorted(check_claims(target.claims(), str(find_paths(os.environ).state))):
            connection = self._connect()
            try:
                job = connection.request("GET", f"/v1/jobs/{job_id}")
            except P2pcError as error:
                if error.code != "no-job":
                    raise
                continue
            if job["state"] not in ("waiting", "running"):
                continue
            is_fed = job.get("total") is None and connection.embedded is None
            if not self.request.resume or self.request.is_detached or is_fed:
                alias = job["alias"]
                raise UsageError(
                    f"the unfinished job {alias} writes there",
                    "two jobs would mix their results",
                    f"p2pc attach {alias} to see it, or p2pc cancel {alias}; then again",
                    code="results-busy",
                )
            if (code := self._carry_on(connection, job)) is not None:
                return code
        return None

    def _carry_on(self, connection: Any, job: Mapping[str, Any]) -> int | None:
        """Follow a job of an earlier run to its end; None when it came."""
        from p2pcompute.cli.follow import Signals, View, make_printer
        from p2pcompute.cli.progress import Progress, choose_display

        done = f"{job['done']}/{job['added']}"
        say(f"job {job['alias']} of an earlier run still writes there, {done} done: carrying on with it", level=1)
        if job.get("total") is None:
            # Who sent its tasks has gone with the node: it gets no more.
            connection.request("POST", f"/v1/jobs/{job['id']}/seal", {})
        display = choose_display(self.request.progress)
        printer, errors = make_printer(
            connection,
            job,
            display,
            mode=self.request.output,
            kind=str(job.get("kind")),
            tag=self.request.tag,
            keep_order=self.request.keep_order,
        )
        progress = Progress(f"{job['name']} {job['alias']}", data=job, started=self.started)
        with Signals().caught() as signals:
            outcome = View(
                connection,
                str(job["id"]),
                str(job["alias"]),
                printer,
                display,
                progress,
                signals,
                errors=errors,
                after=int(job.get("last_seq") or 0),
                keeps_results=True,
                is_onlooker=connection.embedded is None,
            ).follow()
        if errors is not None and outcome.exit_code is None:
            errors.close()
        if outcome.exit_code is not None:
            return outcome.exit_code
        return None

    def _connect(self) -> Any:
        """Return the connection to the node; start one at the first call when there is none."""
        if self._connection is None:
            from p2pcompute.cli.connection import open_connection
            from p2pcompute.cli.daemon_start import ensure_node

            self._is_new = not open_connection().is_answering()
            self._connection = ensure_node(local=self.request.local, announce=lambda text: say(text, level=1))
            if self._connection.embedded is not None:
                _say_awake(self._connection.request("GET", "/v1/status"))
        return self._connection

    def _read_earlier(self) -> DoneKeys | None:
        target = self.request.results
        if not self.request.resume or target is None:
            return None
        for path in (target.dir, target.file, target.joblog):
            if path is not None:
                return read_done_keys(path)
        return None

    def _say_tally(self, earlier: DoneKeys) -> None:
        """Say what is done before anything is run; inputs from a pipe are not known before the end."""
        tally = Tally()
        for _ in make_lines(
            self.request.inputs.rows(), self.maker, tally, earlier=earlier, retry_failed=self.request.retry_failed
        ):
            pass
        say(tally.text(), level=1)
        self._is_tallied = True

    def _check_files(self) -> None:
        """Every file to send is there, before anything starts."""
        from p2pcompute.cli.replacement import expand_list

        for seq, row in enumerate(self.request.inputs.rows(), start=1):
            for pattern in self.request.files.send:
                for path in expand_list(pattern, row, seq):
                    check_readable(path, "file to send") if not os.path.isdir(path) else file_line(path, "--send")

    def _nothing_to_do(self) -> int:
        """No input, or all of them done before."""
        tally = self.tally
        if self.request.resume:
            if not self._is_tallied:
                say(tally.text(), level=1)
            _say_kept(tally)
        job = {"total": tally.seen, "done": tally.done_before, "failed": tally.failed_kept, "by_node": []}
        code = 1 if tally.failed_kept else 0
        if self.request.is_json:
            print_json({"schema": "p2pc.job/1", **job, "state": "failed" if code else "done", "exit_code": code})
        elif not tally.seen:
            say("no inputs: there is nothing to run")
        elif not self.request.is_detached:
            from p2pcompute.cli.progress import summary_text

            say(summary_text(job, time.monotonic() - self.started))
        return min(tally.failed_kept, 101) if self.request.exit_style == "gnu" else code

    # --- with a node ------------------------------------------------------------------------------

    def _submit(self, peeked: list[Row], lines: Iterator[dict[str, Any]]) -> int:
        from p2pcompute.cli.follow import Signals, Submission

        request = self.request
        if request.is_detached:
            _check_detachable()
        connection = self._connect()
        status = connection.request("GET", "/v1/status")
        others = [peer for peer in status.get("peers") or () if peer.get("state") == "up"]
        if request.kind in ("wasm", "container"):
            check_module_files(peeked, request.files)
        elif others and not request.local:
            check_local_files(peeked, request.inputs.count, request.files, " ".join(request.words))
        elif not others and request.kind == "command":
            check_executable(request.words, request.files, only_here=True)
        if not request.local:
            _leave_out_where_varying(request, status)
            _say_few(request, status)
        self._check_can_run(connection, status)
        if self._is_new:
            _say_alone(status)
        if request.batch != "1":
            lines = self._chunker.chunks(lines, self._wait)
        body = self._job_body(status)
        if request.is_detached:
            answer = Submission(connection, body).answer()
            assert answer is not None
            return self._detach(connection, *self._begin(connection, answer, lines))
        with Signals().caught() as signals:  # from the moment that there is a job, they are about the job
            answer = Submission(connection, body).answer(signals)
            if answer is None:
                say("the node has not answered; should it have taken the job, p2pc jobs shows it")
                return EXIT_TERMINATED if signals.is_terminated else EXIT_INTERRUPTED
            return self._follow(connection, status, *self._begin(connection, answer, lines), signals)

    def _begin(
        self, connection: Any, answer: Mapping[str, Any], lines: Iterator[dict[str, Any]]
    ) -> tuple[Any, Mapping[str, Any]]:
        """Start to send the tasks of a job; return what sends them, and the job's id and alias.

        Args:
            answer: of its submission.
        """
        from p2pcompute.cli.follow import Source, batches_of

        job = {"id": answer["id"], "alias": answer["alias"]}
        batches = batches_of(
            lines, count_max=UPLOAD_LINES, bytes_max=UPLOAD_BYTES, is_stopped=lambda: self._is_stopping
        )
        source = Source(connection, job["id"], batches)
        source.start()
        return source, job

    def _wait(self, condition: Callable[[], bool], limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _job_body(self, status: Mapping[str, Any]) -> dict[str, Any]:
        request, function = self.request, self.function
        spec: dict[str, Any] = {
            "env": request.env,
            "share": [file_line(path, "--share") for path in request.files.share],
        }
        if (needs := request.needs) is not None:
            spec |= {"cpus": needs.cpus, "mem_bytes": needs.mem_bytes}
            spec |= {"gpus": needs.gpus, "disk_bytes": needs.disk_bytes}
        if self.lock is not None:
            spec["packages_b64"] = base64.b64encode(self.lock.text).decode()
            spec |= {"platforms": list(self.lock.platforms), "is_built": bool(self.lock.built)}
        if request.kind == "container":
            name = request.words[0]
            spec |= {"image_path": os.path.abspath(name)} if os.path.isfile(name) else {"image": name}
        if request.sandbox:
            spec["sandbox"] = request.sandbox
        if request.has_network:
            spec["network"] = True
        if request.fuel is not None:
            spec["fuel"] = request.fuel
        if function is not None:
            spec["code_b64"] = base64.b64encode(function.code).decode()
            if function.modules is not None:
                spec["modules_b64"] = base64.b64encode(function.modules).decode()
        terms: dict[str, Any] = {
            "retries": request.retries,
            "timeout_s": request.timeout_s,
            "slots_max": _slots(request.slots, status),
            "halt": "" if request.halt == "never" else request.halt,
            "priority": request.priority,
            "deadline_ms": request.deadline_ms,
            "local_only": request.local,
            "on": request.on,
            "not_on": request.not_on,
            **request.demands,
        }
        if needs is not None:
            terms |= {"require": list(needs.require), "prefer": list(needs.prefer)}
        return {
            "name": request.name,
            "kind": request.kind,
            "terms": terms,
            "spec": spec,
            "results": request.results.to_json() if request.results is not None else None,
            "note": {
                "keep_order": request.keep_order,
                "tag": request.tag,
                "output": request.output,
                "exit_style": request.exit_style,
                "words": request.words[:8],
            },
        }

    def _detach(self, connection: Any, source: Any, job: Mapping[str, Any]) -> int:
        from p2pcompute.cli.job_views import kept_text

        try:
            source.join()
        except KeyboardInterrupt:
            self._is_stopping = True
            source.stop()
            connection.request("POST", f"/v1/jobs/{job['id']}/cancel", {"now": True})
            raise
        if source.error is not None:
            connection.request("POST", f"/v1/jobs/{job['id']}/cancel", {"now": True})
            raise source.error
        if self.request.resume and not self._is_tallied:
            say(self.tally.text(), level=1)
        if self.request.is_json:
            print_json(connection.request("GET", f"/v1/jobs/{job['id']}"))
        else:
            print(job["alias"])
            kept = connection.request("GET", f"/v1/jobs/{job['id']}")
            say(f"kept by {kept_text(kept)}", level=1)
        return 0

    def _follow(
        self, connection: Any, status: Mapping[str, Any], source: Any, job: Mapping[str, Any], signals: Any
    ) -> int:
        from p2pcompute.cli.follow import View, bans_hint, make_printer
        from p2pcompute.cli.printing import Contents, Failures
        from p2pcompute.cli.progress import Progress, choose_display

        request = self.request
        this = status.get("node") or {}
        hint = request.inputs.count if request.batch == "1" and not request.resume else None
        title = f"{request.name} {job['alias']}"
        progress = Progress(title, str(this.get("short_id") or ""), hint, started=self.started)
        display = choose_display(request.progress)
        printer, errors = make_printer(
            connection,
            job,
            display,
            mode=request.output,
            kind=request.kind,
            keep_order=request.keep_order,
            tag=request.tag,
        )
        if request.is_live:
            from p2pcompute.cli.live_output import LiveOutput

            everything, streams = Reference(str(job["alias"])), ("stdout", "stderr")
            place = (connection, str(job["id"]), everything, streams)
            printer.live = LiveOutput(*place, printer.put_live, printer.tag_line)
            printer.live.start()
        self._failures = failures = Failures(
            Contents(connection, str(job["id"])),
            is_stderr_shown=request.output == "text",
            is_error_shown=errors is not None,
        )

        def took(task: Mapping[str, Any]) -> None:
            self._chunker.took(task)
            failures.take(task)

        view = View(
            connection,
            str(job["id"]),
            str(job["alias"]),
            printer,
            display,
            progress,
            signals,
            errors=errors,
            source=source,
            keeps_results=request.results is not None,
            on_task=took,
        )
        outcome = view.follow()
        self._is_stopping = True
        if errors is not None and outcome.exit_code != 129:
            errors.close()
        if any(peer.get("trust") in ("member", "stranger") for peer in status.get("peers") or ()):
            with contextlib.suppress(P2pcError):  # the node may be gone
                self._bans_hint = bans_hint(status, connection.request("GET", "/v1/status"))
        return self._finish(outcome.job, outcome.exit_code)

    def _finish(self, job: Mapping[str, Any] | None, signal_code: int | None) -> int:
        from p2pcompute.cli.follow import disputes_hint, failures_hint, job_exit_code, report_results, where_results
        from p2pcompute.cli.progress import summary_text

        if job is None:
            return signal_code or 0
        request, tally = self.request, self.tally
        elapsed_s = time.monotonic() - self.started
        code = job_exit_code(job, failed_before=tally.failed_kept, style=request.exit_style)
        if request.resume and not self._is_tallied:
            say(tally.text(), level=1)
        if hint := failures_hint(job):
            for line in self._failures.lines(str(job.get("alias"))):
                say(line, level=1)
            say(hint, level=1)
        _say_kept(tally)
        for hint in (disputes_hint(job), self._bans_hint):
            if hint:
                say(hint, level=1)
        before = {"done_before": tally.done_before, "failed_before": tally.failed_kept}
        say(summary_text(job, elapsed_s, **before, where=where_results(job)))
        if signal_code is not None and job.get("cancelled"):
            again = "the same command with --resume" if request.results else f"p2pc retry {job['alias']}"
            say(f"to run what was not: {again}", level=1)
        if not report_results(job) and code == 0:
            code = 1
        if signal_code is not None:
            code = signal_code
        if request.plot is not None:
            from p2pcompute.cli.command import Reference
            from p2pcompute.cli.plot_command import plot_job

            plot_job(self._connect(), job, Reference(str(job["id"])), request.plot, "report")
            say(f"drawn: {request.plot}", level=1)
        if request.is_json:
            print_json({**job, "exit_code": code, "elapsed_s": round(elapsed_s, 3), **before})
        return code


def _say_kept(tally: Tally) -> None:
    """Failures of an earlier run make this one's exit code 1: say so, and what to do about them."""
    if tally.failed_kept:
        say(f"{count_text(tally.failed_kept)} failed before and not tried now; again: --resume-failed", level=1)


def _leave_out_where_varying(request: Request, status: Mapping[str, Any]) -> None:
    """Ask no members where the output of a command seems to depend on the node or the time, and say so: their results
    are compared, and honest ones that differ would be banned.  What was asked for is done, but said too."""
    varying = what_varies(request.words) if request.kind in ("command", "shell") else ""
    terms = request.demands
    is_compared = terms.get("trust") != "trusted" and terms.get("verify") != "none" and terms.get("replicas") != 1
    has_members = any(peer.get("trust") == "member" for peer in status.get("peers") or ())  # also who is away now
    if not varying or not is_compared or not has_members:
        return
    say(f"note: {varying} gives something else on each node or each time; results of members are compared, and an")
    if terms or request.on:
        say("honest one that differs looks like a lie: --verify none believes them, --trust trusted leaves them out")
    else:
        terms["trust"] = "trusted"
        say("honest one that differs looks like a lie.  So members are left out; --verify none takes and believes them")


def _say_few(request: Request, status: Mapping[str, Any]) -> None:
    """Say when there are not as many nodes as --replicas wants."""
    wanted = int(request.demands.get("replicas") or 0)
    peers = status.get("peers") or ()
    members = sum(peer.get("trust") == "member" and peer.get("state") == "up" for peer in peers)
    if peers and wanted > 1 and members < wanted:
        say(
            f"note: --replicas {wanted} compares what so many nodes compute that are not trusted, and {members} of them"
        )
        say("are up; what fewer have computed waits for more of them, or is settled by a trusted node")


def _say_awake(status: Mapping[str, Any]) -> None:
    """What earlier runs left unfinished goes on while a node runs: say so."""
    jobs = status.get("jobs") or {}
    count = int(jobs.get("running") or 0) + int(jobs.get("waiting") or 0)
    if count:
        go = "goes" if count == 1 else "go"
        say(f"{plural(count, 'unfinished job')} of earlier runs {go} on meanwhile: p2pc jobs", level=1)


def _say_alone(status: Mapping[str, Any]) -> None:
    """A node that was just started and is alone: say how to change that, once."""
    if (status.get("group") or {}).get("is_alone"):
        slots = plural(int((status.get("slots") or {}).get("total") or 1), "slot")
        name = (status.get("node") or {}).get("name")
        say(f"running on {name} only ({slots}); add a computer: p2pc invite", level=1)


def _slots(text: str | None, status: Mapping[str, Any]) -> int | None:
    """Return the bound that -j sets; None = no bound."""
    if text is None or text in ("0", "0%"):
        return None
    if not text.endswith("%"):
        return int(text)
    total = int((status.get("slots") or {}).get("total") or 1)
    total += sum(int(peer.get("slots") or 0) for peer in status.get("peers") or () if peer.get("state") == "up")
    return max(1, total * int(text[:-1]) // 100)


def _check_detachable() -> None:
    """A node that ends with this command cannot keep a job.

    Raises:
        UsageError: no node runs, and here none may stay behind.
    """
    from p2pcompute.cli.connection import open_connection
    from p2pcompute.cli.daemon_start import why_embedded

    reason = why_embedded(os.environ)
    if reason is not None and not open_connection().is_answering():
        raise UsageError(
            "nothing would carry on with the job",
            f"no node is running, and here ({reason}) none is left behind",
            "p2pc node start, then again",
            code="detach",
        )
