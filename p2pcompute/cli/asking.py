"""Yes or no at the terminal; where nobody can be asked, an error with the command that says yes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

import click

from p2pcompute.cli.output import is_terminal, options, say
from p2pcompute.errors import P2pcError, UsageError


def can_ask(*, is_mute: bool = False) -> bool:
    """True when somebody can answer.

    Args:
        is_mute: what is printed is for a program (--json).
    """
    return not (options().no_input or is_mute or not is_terminal(sys.stdin))


def typed_with(*words: str) -> str:
    """Return the command as it was typed, with some words more: flags that it had are not lost to who copies it."""
    typed = options().typed
    end = typed.index("--") if "--" in typed else len(typed)
    return shlex.join(["p2pc", *typed[:end], *words, *typed[end:]])


def ask(
    question: str,
    *,
    needs: str,
    why: str = "this asks first, and nobody can answer here",
    is_mute: bool = False,
    before: Sequence[str] = (),
    yes: Sequence[str] = ("-y",),
    otherwise: str = "nothing was changed",
    error: type[P2pcError] = UsageError,
) -> None:
    """Ask, with No for an answer unless told otherwise.

    Args:
        needs: what needs a yes, as the head of the error.
        before: lines that tell what it means, said first.
        yes: words that say yes on the command line.
        otherwise: what a No leads to.
        error: what is raised.

    Raises:
        P2pcError: `error`: nobody can be asked, or the answer was No.
    """
    if not can_ask(is_mute=is_mute):
        raise error(needs, why, typed_with(*yes), code="consent")
    for line in before:
        say(line)
    if not click.confirm(question, default=False, err=True):
        raise error(otherwise, "you said no", None, code="consent")
