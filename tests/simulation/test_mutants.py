"""Each invariant catches a bug that is put into node code on purpose; if these fail, a broken node would pass."""

from __future__ import annotations

import functools

import pytest

from p2pcompute.simulation.mesh_settings import CHECKS
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.trial import Trial, is_of, run_trial

TRIALS = list(dict.fromkeys((mutant.trial, seed) for mutant in MUTANTS for seed in range(mutant.seeds)))


@functools.cache
def _sound(trial: Trial, seed: int) -> tuple[str, ...]:
    return tuple(run_trial(trial, seed).problems)


def test_every_invariant_has_a_mutant() -> None:
    assert sorted({mutant.invariant for mutant in MUTANTS}) == sorted(CHECKS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant is caught by the invariant that it breaks, in trials that sound code passes."""
    for seed in range(mutant.seeds):
        assert _sound(mutant.trial, seed) == ()
        with monkeypatch.context() as patch:
            mutant.mutate(patch)
            problems = run_trial(mutant.trial, seed, until=mutant.invariant).problems
        if any(is_of(problem, mutant.invariant) for problem in problems):
            return
    pytest.fail(f"{mutant.name} was not caught by {mutant.invariant}: {problems}")
