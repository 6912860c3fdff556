"""What must fail: it is said with what, why and how to mend it, and tried where it may work, never twice in vain."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.mesh import Daemon, Ran, trio_of_daemons


@pytest.fixture(scope="module")
def trio() -> Iterator[list[Daemon]]:
    with trio_of_daemons() as daemons:
        yield daemons


def attempts_of(ada: Daemon, *words: str) -> tuple[Ran, int]:
    """Run a job of one task that fails, which may be retried nine times."""
    failed = ada.p2pc("run", "--retries", "9", *words, ":::", "1").check(1)
    return failed, int(ada.p2pc("show", "--json", "last/0").check().json()["attempts"])


def test_a_program_that_came_with_its_task_and_is_not_there(trio: list[Daemon]) -> None:
    ada = trio[0]
    (ada.home / "other").write_text("")
    refused = ada.p2pc("run", "--share", "other", "./absent", ":::", "1").check(2)
    assert "there is no file './absent' to run" in refused.err and "fix:" in refused.err
    failed, count = attempts_of(ada, "--share", "other", "--not-on", "ada", "./absent-{}")
    assert count == 1, failed.err
    assert "'./absent-1' was not found" in failed.err and "no such file in the task's directory" in failed.err
    assert "send it along with --send" in failed.err


def test_a_program_that_no_node_has(trio: list[Daemon]) -> None:
    """Any of them might: each is asked once."""
    failed, count = attempts_of(trio[0], "no-such-program")
    assert count == 3, failed.err
    assert "'no-such-program' was not found" in failed.err and "in no directory of PATH" in failed.err
    assert "install it there" in failed.err


def test_an_interpreter_that_no_node_has(trio: list[Daemon]) -> None:
    ada = trio[0]
    (ada.home / "script").write_text("#!/usr/bin/no-such-language\n")
    (ada.home / "script").chmod(0o755)
    failed, count = attempts_of(ada, "--share", "script", "./script")
    assert count == 3, failed.err
    assert "the interpreter named in its first line is not on this node" in failed.err
    assert "install it there" in failed.err


@pytest.mark.parametrize("pattern", ["out.txt", "*.png", "made/of/{#}"])
def test_an_output_that_nothing_is_like(trio: list[Daemon], pattern: str) -> None:
    failed, count = attempts_of(trio[0], "--fetch", pattern, "echo {} > other.txt")
    assert count == 1, failed.err
    assert pattern.replace("{#}", "1") in failed.err and "; " in failed.err, failed.err
