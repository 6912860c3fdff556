"""docs/simulation.md: no figure that a run reports is missing in its glossary, and no promise in its table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from p2pcompute.simulation.mesh_run import run_mesh
from p2pcompute.simulation.mesh_settings import CHECKS
from p2pcompute.simulation.scenario import load_scenario, with_values
from p2pcompute.simulation.summary import SHARES

DOCS = Path(__file__).parents[2] / "docs" / "simulation.md"


def glossary() -> dict[str, str]:
    """Name → unit."""
    text = DOCS.read_text(encoding="utf-8").partition("### Glossary")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ([^|]+) \| [^|]+ \|$", text, re.MULTILINE)
    return {name: unit.strip() for names, unit in rows for name in re.findall(r"\w+", names)}


@pytest.mark.parametrize("name", ["smoke", "swarm", "churn-lookups"])
def test_every_figure_of_a_run_is_in_the_glossary(name: str) -> None:
    values = {"nodes": "12", "hours": "0.03", "workload.start_s": "2", "checks.rest_s": "60"}
    scenario = with_values(load_scenario(name), values)
    metrics = run_mesh(scenario, 0).metrics
    known = glossary()
    plain = {metric if metric in known else re.sub(r"_(p50|p95|max)$", "", metric) for metric in metrics}
    assert plain and plain <= known.keys()


def test_every_figure_that_the_simulator_counts_is_in_the_glossary() -> None:
    folder = Path(__file__).parents[2] / "p2pcompute" / "simulation"
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    names = set(re.findall(r'metrics\.(?:count|sample|share|peak|set)\(\s*"(\w+)"', text))
    assert len(names) > 40 and names <= glossary().keys()


def test_shares_are_those_of_the_glossary() -> None:
    """What lies between 0 and 1 is what has no other unit."""
    assert {name for name, unit in glossary().items() if unit == "share"} == set(SHARES)


def test_every_promise_is_described() -> None:
    """If it broke: whoever reads `leases: …` in a failure finds nowhere what that is."""
    text = DOCS.read_text(encoding="utf-8").partition("## What is checked")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == sorted(CHECKS)
