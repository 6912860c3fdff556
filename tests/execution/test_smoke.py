from __future__ import annotations

import pickle

from p2pcompute.host.runs import OutcomeStatus

from .conftest import Rig


async def test_function(rig: Rig) -> None:
    outcome = await rig.call(lambda x: x + 1, 41)
    assert outcome.status == OutcomeStatus.OK and pickle.loads(outcome.value) == 42


async def test_shell(rig: Rig) -> None:
    outcome = await rig.shell("echo hi; echo err >&2")
    assert (outcome.status, outcome.stdout, outcome.stderr) == (OutcomeStatus.OK, b"hi\n", b"err\n")
