"""Work of this installation's own user in a sandbox, because its submitter wants one."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from p2pcompute.execution.functions import load_value
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload
from p2pcompute.host.runs import OutcomeStatus
from tests.execution.conftest import Rig, call, started_rig
from tests.sandboxes import need_sandbox


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """As other tests have it, where sandboxes work."""
    need_sandbox()
    async for made in started_rig(tmp_path):
        yield made


async def test_a_command_is_shut_in(rig: Rig) -> None:
    """Broken: what was to run in a sandbox runs as the user."""
    boxed = await rig.shell("pwd; id -u", sandbox="sandbox")
    place, user = boxed.stdout.split()
    assert place.startswith(b"/p2pc/") and int(user) == (os.getuid() or int(user)) != 0
    plain = await rig.shell("pwd")
    assert str(rig.directory).encode() in plain.stdout, "other jobs run as before"


async def test_values_of_functions_are_data(rig: Rig) -> None:
    """Broken: code that nobody trusts leaves its sandbox by a pickle."""

    def work(kind: str) -> object:
        if kind == "raise":
            raise LookupError(kind)
        return [1.5, "text"] if kind == "data" else os.stat_result if kind == "class" else "x" * 100_000

    spec = await rig.function(work, sandbox="sandbox")
    data, kept, large, raised = await rig.run(spec, call("data"), call("class"), call("large"), call("raise"))
    assert load_value(data.value, is_trusted=False) == [1.5, "text"]
    assert kept.status is OutcomeStatus.FAILED and not kept.value and "sandbox as data" in kept.error
    assert large.value_blob is not None and load_value(await rig.content(large.value_blob), is_trusted=False)
    assert raised.status is OutcomeStatus.FAILED and not raised.value and "LookupError: raise" in raised.error


async def test_a_pickle_that_is_written_past_us_is_dropped(rig: Rig) -> None:
    """Broken: a task that lies about the form of its value has its pickle loaded."""

    def lie() -> object:
        from p2pcompute.execution import codec

        codec.encode = lambda value: __import__("pickle").dumps(value)  # type: ignore[assignment]
        return "y" * 100_000

    lied = await rig.call(lie, sandbox="sandbox")
    assert lied.status is OutcomeStatus.FAILED and lied.value_blob is None and not lied.value


async def test_without_a_sandbox_only(rig: Rig) -> None:
    """Broken: work of others leaves the sandbox that this node's owner wants."""
    spec = JobSpec(kind=TaskKind.SHELL, sandbox="process")
    runs = [replace(run, submitter=b"a" * 32) for run in rig.batch(spec, [TaskPayload(argv=("pwd",))])]
    (outcome,) = await rig.finish(runs, rig.begin(runs))
    assert outcome.status is OutcomeStatus.REFUSED and "in sandboxes only" in outcome.error
    assert (await rig.shell("pwd", sandbox="process")).status is OutcomeStatus.OK
