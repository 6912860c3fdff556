"""The scenario `swarm`: whole nodes under random faults, every promise checked.  `make sim-soak` runs it for hours."""

from __future__ import annotations

import os

import pytest

from p2pcompute.simulation.mesh_run import run_mesh
from p2pcompute.simulation.scenario import load_scenario

FOUND = (20017, 30000, 70034, 80036, 505098, 900010, 900084, 900147, 900329, 900469, 910138)
"""Seeds that failed once: a task begun on a machine that was slow for a moment kept its owner from rest for minutes;
lookups gave a slow peer up too soon where packets were lost (two seeds); requests were sent too rarely where they were,
as if peers had been busy (three seeds); a node that had moved and lost its disk while
it was cut off looked for the others where the founder had been; a custodian's disk failed as it was to keep a job; a
worker told an owner of tasks that another node coordinated by then; what is judged
while a node starts was taken for an invention (two seeds)."""
SEEDS = [*range(200)] if os.environ.get("P2PC_SOAK") else [*FOUND, 1, 2, 3, 5, 7, 8, 13]
"""Those of the short list: 7 runs what is ready at one time in a random order, 13 with real crypto."""


@pytest.mark.drill
@pytest.mark.parametrize("seed", SEEDS)
def test_no_promise_breaks(seed: int) -> None:
    result = run_mesh(load_scenario("swarm"), seed)
    assert not result.problems, f"p2pc sim run swarm --seed {seed}"
    assert result.fired, "nothing went wrong, so nothing was tested"
