"""Which tasks of a job `show`, `logs` and `result` are about: by state, node, input and time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import click

from p2pcompute.cli.completing import complete_nodes

STATES: Final = ("waiting", "running", "done", "failed", "cancelled")
"""Of jobs and of tasks."""
SECTION: Final = {"Which tasks": ("state", "on", "input_text", "longer")}
"""Of the flags below in the help of a command."""

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """What tasks must have; of several states or nodes one."""

    states: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    """Names, or beginnings of ids."""
    text: str = ""
    """Part of the inputs, as they are listed."""
    longer_s: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.states or self.nodes or self.text or self.longer_s)

    def takes(self, task: Mapping[str, Any]) -> bool:
        """True when a task (p2pc.task/1) is among them."""
        runtime_s = task.get("runtime_s")
        return (
            (not self.states or task["state"] in self.states)
            and (not self.nodes or any(_is_on(task, node) for node in self.nodes))
            and (not self.text or self.text in " ".join(str(word) for word in task.get("inputs") or ()))
            and (not self.longer_s or (runtime_s is not None and runtime_s >= self.longer_s))
        )

    def within(self, states: tuple[str, ...]) -> tuple[str, ...] | None:
        """Return the states to ask for where a command is about `states` (empty: all); None: there are none."""
        if not self.states or not states:
            return self.states or states
        return tuple(state for state in states if state in self.states) or None


ALL: Final = TaskFilter()


def _is_on(task: Mapping[str, Any], node: str) -> bool:
    prefix = node.upper().replace("-", "")
    key = str(task.get("node_id") or "").replace("-", "")
    return task.get("node") == node or (len(prefix) >= 4 and key.startswith(prefix))


def filter_options(command: _Decorated) -> _Decorated:
    """Add --state, --on, --input and --longer; the command gets them as `only`."""

    @functools.wraps(command)
    def run(*args: Any, state: tuple[str, ...], on: tuple[str, ...], input_text: str, longer: str, **named: Any) -> Any:
        from p2pcompute.config import parse_duration

        longer_s = parse_duration(longer) if longer else 0.0
        return command(*args, only=TaskFilter(state, on, input_text, longer_s), **named)

    for option in (
        click.option("--longer", default="", metavar="DURATION", help="Only tasks that took at least this long."),
        click.option("--input", "input_text", default="", metavar="TEXT", help="Only tasks with this in their inputs."),
        click.option(
            "--on",
            multiple=True,
            shell_complete=complete_nodes,
            metavar="NODE",
            help="Only tasks that this node ran (repeatable).",
        ),
        click.option("--state", multiple=True, type=click.Choice(STATES), help="Only in this state (repeatable)."),
    ):
        run = option(run)
    return cast("_Decorated", run)
