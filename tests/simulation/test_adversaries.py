"""Hostile members: if these fail, one of them breaks honest nodes, or does nothing and so tests nothing."""

from __future__ import annotations

import random
import re

import pytest

from p2pcompute.simulation.hostile import KINDS, HostileSettings, draw_hostile
from tests.simulation.trial import Trial, run_trial

WRONG = ("wrong", "colluding")


@pytest.mark.parametrize("kind", KINDS)
def test_honest_nodes_survive(kind: str) -> None:
    """No exception, nothing unbounded, every job ends; with one hostile node of six, and with crashes."""
    hostile = {kind: 1.0} | ({"sybil_identities": 3} if kind == "sybil" else {})
    world = run_trial(Trial(hostile=hostile, job_count=1), 1)
    assert world.problems == []
    assert world.fired[f"hostile.{kind}"] > 0
    is_wrong = world.metrics.result().get("wrong_accepted", 0) > 0
    assert is_wrong == (kind in WRONG)


def test_wrong_values_break_a_run_that_forbids_them() -> None:
    world = run_trial(Trial(hostile={"wrong": 1}, job_count=1, crashes=False, checks={"wrong_values": True}), 1)
    shown = r"[\d.]+ s: values: a wrong value: task \d+ of \S+ is done: got [0-9a-f]{16}, expected [0-9a-f]{16}"
    assert any(re.fullmatch(shown, problem) for problem in world.problems), world.problems


def test_all_kinds_together() -> None:
    """One of each among five honest nodes."""
    kinds: dict[str, float] = {kind: 1.0 for kind in KINDS if kind not in ("sybil", "steal_flood")}
    world = run_trial(Trial(nodes=len(kinds) + 5, hostile=kinds, job_count=1), 2)
    assert world.problems == []
    silent = [kind for kind in kinds if not world.fired[f"hostile.{kind}"]]
    assert silent in ([], ["late"], ["drop"], ["late", "drop"]), "whoever gets no task cannot fail it"


def test_the_same_seed_gives_the_same_trace() -> None:
    trial = Trial(hostile={"malformed": 1, "replay": 1, "equivocation": 1}, job_count=1, crashes=False)
    first, second = (run_trial(trial, 3).simulation.trace_hash() for _ in range(2))
    assert first == second


def test_drawing_takes_shares_and_counts_and_spares() -> None:
    settings = HostileSettings(wrong=0.25, replay=2)
    drawn = draw_hostile(settings, random.Random("draw"), nodes=20, spared=(0, 1))
    kinds = list(drawn.values())
    assert (kinds.count("wrong"), kinds.count("replay"), len(kinds)) == (5, 2, 7)
    assert 0 not in drawn and 1 not in drawn
    assert drawn == draw_hostile(settings, random.Random("draw"), nodes=20, spared=(0, 1))
    assert len(draw_hostile(HostileSettings(drop=50), random.Random("draw"), nodes=4, spared=(0,))) == 3
    assert list(draw_hostile(HostileSettings(drop=0.01), random.Random("draw"), nodes=4).values()) == ["drop"]
