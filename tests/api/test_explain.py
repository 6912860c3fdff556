"""What a program may ask of nodes, and what it hears when none has it."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from typing import Any

import pytest

from p2pcompute import Explanation, MeshExecutor, NoEligibleNode, Reason, TaskOptions, UsageError


def test_a_function_runs_where_its_options_allow(executor: MeshExecutor) -> None:
    """Options about nodes are ignored, or a job that could run does not."""
    options = TaskOptions(require=["cpus>=1 && has=sh", "os=linux"], prefer=["-load"], cpus=1, mem="1G", disk="1M")
    name = executor.nodes[0].name
    job = executor.start_map(abs, [-1, -2], options=options)
    assert job.results(timeout=30) == [1, 2]
    assert list(executor.with_options(on=[name]).map(abs, [-3])) == [3]
    assert list(executor.with_options(on=[executor.nodes[0].id]).map(abs, [-4])) == [4]


def test_what_can_never_run_is_said_with_the_reason(executor: MeshExecutor) -> None:
    """A program waits for ever for a machine that it does not have."""
    options = TaskOptions(require=["has=no-such-tool", "cpus>=1"], cpus=4096)
    job = executor.start_map(abs, [-1, -2], options=options)
    with pytest.raises(NoEligibleNode) as caught:
        job.results(timeout=30)
    explanation = caught.value.explanation
    assert isinstance(explanation, Explanation)
    assert not explanation.eligible
    assert [(reason.code, reason.fix) for reason in explanation.reasons] == [
        ("has", "install no-such-tool there"),
        ("cpus", None),
    ]
    assert explanation.would_help[0].startswith("drop has=no-such-tool and --cpus ")
    assert "<td>install no-such-tool there</td>" in explanation._repr_html_()
    assert "needs has=no-such-tool; not installed there" in str(explanation)
    assert f"0 nodes could run it now; 1 never: {executor.nodes[0].name}\n" in str(explanation)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), NoEligibleNode)


def test_what_comes_after_the_refusal_is_refused_too(executor: MeshExecutor) -> None:
    """Inputs that arrive later wait for ever, and the executor with them."""
    inputs = iter([-1, -2, -3])

    def slowly() -> Iterator[int]:
        for number in inputs:
            yield number
            time.sleep(0.2)

    job = executor.start_map(abs, slowly(), options=TaskOptions(require=["has=no-such-tool"]))
    assert [type(error) for error in job.results(errors="return", timeout=30)] == [NoEligibleNode] * 3


def test_a_job_that_is_over_says_so(executor: MeshExecutor) -> None:
    """A program that asks why a job is slow would fail when the job has ended meanwhile."""
    job = executor.start_map(abs, [-1])
    assert job.results(timeout=30) == [1]
    assert str(job.explain()) == "every call has ended" and "every call" in job.explain()._repr_html_()
    assert not job.explain().eligible


def test_a_job_that_waits_explains_itself(executor: MeshExecutor) -> None:
    job = executor.start_map(abs, [-1], options=TaskOptions(require=["load<0"]))
    try:
        explanation = job.explain()  # at once: it waits for the job to begin
        assert explanation.reasons[0].code == "load"
        assert explanation.reasons[0].verdict == "later" and "; 1 later: " in str(explanation)
        assert explanation.would_help[0].startswith("--require 'load<")
        assert job.futures[0].explain().reasons[0].node == executor.nodes[0].name
    finally:
        job.cancel()
    assert executor.submit(abs, -1).result(30) == 1


@pytest.mark.parametrize(
    "options",
    [{"require": "cpus>1"}, {"require": ["cpus >"]}, {"prefer": ["os"]}, {"cpus": -1}, {"gpus": "1"}, {"disk": 0}],
)
def test_what_means_nothing_is_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TaskOptions(**options)


def test_a_node_that_there_is_not_is_refused(executor: MeshExecutor) -> None:
    with pytest.raises(UsageError, match="there is no node 'nowhere'"):
        executor.with_options(not_on=["nowhere"]).submit(abs, -1).result(30)


def test_options_that_differ_are_different_jobs() -> None:
    assert TaskOptions(require=["os=linux"]).identity() != TaskOptions().identity()
    assert TaskOptions(on=["a"]).identity() != TaskOptions(not_on=["a"]).identity()


def test_an_explanation_is_safe_to_show() -> None:
    """Names of nodes and reasons come from others."""
    shown = Explanation(("<b>",), (Reason("x", "<i>", "<script>", None),), ("<a>",))._repr_html_()
    assert not any(tag in shown for tag in ("<b>", "<i>", "<script>", "<a>"))
