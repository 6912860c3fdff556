"""What a command of a job gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that has ended, whatever its exit code was."""

    args: Sequence[str]
    """The words; a single one when the shell ran it."""
    returncode: int
    """Negative: it was ended by that signal."""
    stdout: bytes = field(repr=False)
    stderr: bytes = field(repr=False)
    files: Mapping[str, str] = field(default_factory=dict)
    """Where the fetched files are, by the name that they had in the task's directory."""
