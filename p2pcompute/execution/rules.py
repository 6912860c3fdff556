"""What a node runs, and how shut in: decided before a task gets a process, from whose it is and what it is."""

from __future__ import annotations

from collections.abc import Callable

from p2pcompute.execution import sandbox
from p2pcompute.execution.levels import Level
from p2pcompute.execution.spec import TaskKind, fence_of, kind_of
from p2pcompute.execution.task_messages import KnownJob, Unfit
from p2pcompute.host.runs import Outcome, OutcomeStatus, TaskRun


class Rules:
    """What the machine's owner lets others do here, as far as it can be done."""

    def __init__(self, others: Level, *, only_wasm: bool) -> None:
        """Args:
        others: level of tasks of other installations.
        only_wasm: of these, only WASI modules are run, as it is at the level `wasm`.
        """
        self.others = others
        self.only_wasm = only_wasm or others is Level.WASM
        self.trusts: Callable[[bytes], bool] = lambda _submitter: False
        """Whether packages may be built for another installation, which runs their code."""
        self.allows_network = False
        """Whether tasks of others may reach public addresses, as the machine's owner says."""

    def check(self, run: TaskRun, job: KnownJob) -> None:
        """Refuse what may not run here, or cannot be isolated as it must be.

        Raises:
            Unfit: so it is.
        """
        self._check_kind(run, job)
        self._check_network(run, job)

    def is_fenced(self, kind: TaskKind | None) -> bool:
        """Whether a task that is to be shut in is so by a fence: a module, where others' modules are."""
        return kind is TaskKind.WASM and self.others is Level.WASM

    def is_boxed(self, run: TaskRun) -> bool:
        """Whether a batch runs in a sandbox; one of several submitters or jobs never does.  A container is one itself,
        and cannot be made in one."""
        if fence_of(run.spec)[0] == "sandbox":
            return kind_of(run.spec) is not TaskKind.CONTAINER
        if not run.submitter or self.others not in (Level.SANDBOX, Level.WASM):
            return False
        return not (self.trusts(run.submitter) and kind_of(run.spec) is TaskKind.CONTAINER)

    def check_level(self, run: TaskRun) -> None:
        """Refuse what cannot be isolated as it must be.

        Raises:
            Unfit: this node may not run it.
        """
        if run.submitter and self.others is Level.NONE:
            raise Unfit(Outcome(OutcomeStatus.REFUSED, error="this node runs no work of others"))
        wanted = fence_of(run.spec)[0]
        if wanted == "process" and self.is_boxed(run):
            raise Unfit(Outcome(OutcomeStatus.REFUSED, error="this node runs work of others in sandboxes only"))
        if wanted == "sandbox" and self._needs_bubblewrap(run):
            try:
                sandbox.find_bubblewrap()
            except sandbox.NoSandbox as error:
                raise Unfit(Outcome(OutcomeStatus.REFUSED, error=f"this node has no sandbox: {error}")) from None

    def _needs_bubblewrap(self, run: TaskRun) -> bool:
        """Whether what has to be shut in is so by bubblewrap: a container is its own sandbox, and where others' modules
        run in a fence all do."""
        kind = kind_of(run.spec)
        return kind is not TaskKind.CONTAINER and not self.is_fenced(kind)

    def _check_kind(self, run: TaskRun, job: KnownJob) -> None:
        """Refuse what is no WASI module, where nothing else of others runs.

        Raises:
            Unfit: this node may not run it.
        """
        if run.submitter and self.only_wasm and job.spec.kind is not TaskKind.WASM:
            raise Unfit(Outcome(OutcomeStatus.REFUSED, error="this node runs WASI modules of others, and nothing else"))
        if run.submitter and job.spec.kind is TaskKind.CONTAINER and not self.trusts(run.submitter):
            error = (
                "this node runs containers of installations that it trusts; say so there: p2pc trust set NODE trusted"
            )
            raise Unfit(Outcome(OutcomeStatus.REFUSED, error=error))

    def _check_network(self, run: TaskRun, job: KnownJob) -> None:
        """Refuse what needs a network where it gets none.

        Raises:
            Unfit: this node may not run it.
        """
        if not job.spec.network or not (run.submitter or self.is_boxed(run)):
            return
        is_allowed = self.allows_network or not run.submitter
        why = "" if is_allowed else "its owner lets tasks of others reach no network (node.network)"
        try:
            sandbox.find_pasta()
        except sandbox.NoSandbox as error:
            why = why or f"it has no network for sandboxes: {error}"
        if why:
            raise Unfit(Outcome(OutcomeStatus.REFUSED, error=f"this node cannot give the task a network: {why}"))
