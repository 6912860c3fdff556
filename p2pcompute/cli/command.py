"""Building blocks of commands: examples first in the help, flags in named sections, --json, references to tasks."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from p2pcompute.cli.completing import complete_groups, complete_jobs
from p2pcompute.cli.output import Options
from p2pcompute.errors import UsageError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 96}

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def global_options() -> list[click.Option]:
    """Return the flags of all commands, as they stand before the command."""
    return [
        click.Option(
            ["-g", "--group"],
            metavar="NAME",
            envvar="P2PC_GROUP",
            shell_complete=complete_groups,
            help="Group to use.  [env: P2PC_GROUP]",
        ),
        click.Option(
            ["--config"], metavar="FILE", envvar="P2PC_CONFIG", help="Use this config file only.  [env: P2PC_CONFIG]"
        ),
        click.Option(
            ["--socket"], metavar="PATH", envvar="P2PC_SOCKET", help="Socket of the node.  [env: P2PC_SOCKET]"
        ),
        click.Option(
            ["--color"],
            type=click.Choice(["auto", "always", "never"]),
            default="auto",
            envvar="P2PC_COLOR",
            help="[env: P2PC_COLOR, NO_COLOR, FORCE_COLOR]",
        ),
        click.Option(["-q", "--quiet"], count=True, help="Less on stderr (repeat: errors only)."),
        click.Option(["-v", "--verbose"], count=True, help="More on stderr, and tracebacks."),
        click.Option(["--no-input"], is_flag=True, envvar="P2PC_NO_INPUT", help="Never ask; fail instead."),
    ]


def set_global(context: click.Context, param: click.Parameter, value: Any) -> None:
    """Take the value of a flag of all commands.

    Raises:
        UsageError: a settings file was named that is not there.
    """
    flags, name = context.ensure_object(Options), str(param.name)
    source = context.get_parameter_source(name)
    is_typed = source is ParameterSource.COMMANDLINE
    if name in ("quiet", "verbose"):
        setattr(flags, name, getattr(flags, name) + value)
    elif name in ("color", "no_input"):
        if value is not None and (is_typed or source is ParameterSource.ENVIRONMENT):
            setattr(flags, name, value)
    elif value:
        if name == "config" and is_typed and not os.path.isfile(value):
            raise UsageError(f"there is no settings file {value}", "", "check the path of --config", code="no-file")
        # The settings, the connection and a node that is started for the user find them there.
        os.environ[f"P2PC_{name.upper()}"] = value if name == "group" else os.path.abspath(value)
        if name == "group" and is_typed:
            flags.group = value


def _hidden_globals() -> list[click.Parameter]:
    """Return the flags of all commands as they may stand behind the command, too: hands put them there."""
    found: list[click.Parameter] = []
    for option in global_options():
        option.envvar, option.hidden, option.expose_value = None, True, False
        option.is_eager, option.callback = True, set_global
        found.append(option)
    return found


class Command(click.Command):
    """A command whose help starts with examples and shows its flags in sections.

    Args:
        examples: lines of (what is typed, what it does).
        sections: title → names of parameters; the rest goes under "Options".
    """

    def __init__(
        self,
        *args: Any,
        examples: Sequence[tuple[str, str]] = (),
        sections: dict[str, Sequence[str]] | None = None,
        **named: Any,
    ) -> None:
        named["context_settings"] = {**CONTEXT, **named.get("context_settings", {})}
        super().__init__(*args, **named)
        self.params += _hidden_globals()
        self.examples = examples
        self.sections = sections or {}
        if self.epilog is None and any("/TASKS" in (param.metavar or "") for param in self.params):
            self.epilog = "Tasks count from 0: the first one, of which {#} was 1, is JOB/0."

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_help_text(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for typed, meaning in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{typed}\n")
                    if meaning:
                        formatter.write(f"{'':>{formatter.current_indent + 4}}{meaning}\n")
        formatter.write_paragraph()
        self.format_usage(ctx, formatter)
        self.format_options(ctx, formatter)
        self.format_epilog(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = {
            param.name: record
            for param in self.get_params(ctx)
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None
        }
        sections = {
            title: [records.pop(name) for name in names if name in records] for title, names in self.sections.items()
        }
        sections["Options"] = list(records.values())
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class Amount(click.FloatRange):
    """A number of a range: "not a number" would lie in each."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number", param, ctx)
        return number


class CommandGroup(click.Group):
    """Commands in the order in which they are written, each with its whole first sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, _first_sentence(command.help or "")) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _first_sentence(text: str) -> str:
    sentence = " ".join(text.split()).partition(". ")[0]
    return sentence if sentence.endswith((".", "?")) else f"{sentence}."


def _set_json(context: click.Context, _: click.Parameter, value: bool) -> bool:
    if value:
        context.ensure_object(Options).json = True
    return value


def json_option(command: _Decorated) -> _Decorated:
    """Add --json; `options().json` is set before any other flag is read."""
    return click.option(
        "--json",
        "json_",
        is_flag=True,
        is_eager=True,
        callback=_set_json,
        help="One JSON document on stdout.",
    )(command)


def check_text(
    words: Sequence[str],
    why: str = "words and inputs travel as text",
    fix: str = "write it in UTF-8, or rename the file",
) -> None:
    """Refuse words that are not text, as file names in another encoding are.

    Raises:
        UsageError: one is not.
    """
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            shown = word.encode("utf-8", "backslashreplace").decode()
            raise UsageError(f'"{shown}" is not UTF-8', why, fix, code="encoding") from None


def yes_option(command: _Decorated) -> _Decorated:
    """Add -y/--yes."""
    return click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")(command)


@dataclass(frozen=True, slots=True)
class Reference:
    """JOB or JOB/TASKS as typed."""

    job: str
    ranges: tuple[tuple[int, int], ...] | None = None
    """Inclusive ranges of task numbers, from 0, in ascending order; None = the whole job."""

    @property
    def task(self) -> int | None:
        """The number when exactly one task is named."""
        if self.ranges is not None and len(self.ranges) == 1 and self.ranges[0][0] == self.ranges[0][1]:
            return self.ranges[0][0]
        return None

    def __contains__(self, index: int) -> bool:
        return self.ranges is None or any(low <= index <= high for low, high in self.ranges)

    def indices(self, total: int) -> list[int] | None:
        """Return the task numbers below `total`; None = all."""
        if self.ranges is None:
            return None
        return sorted({index for low, high in self.ranges for index in range(low, min(high + 1, total))})


TICKET_PREFIX = "p2pc-job-"
"""As in `scheduler.tickets`, which takes long to import."""
_JOB = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}")


def parse_reference(text: str) -> Reference:
    """Return the reference that `text` ("j7k3", "last/17", "j7k3/3-9,12") names.

    Raises:
        UsageError: it is not one.
    """
    job, slash, tasks = text.partition("/")
    try:
        if not _JOB.fullmatch(job):
            raise ValueError
        if not slash:
            return Reference(job)
        ranges = []
        for part in tasks.split(","):
            low, dash, high = part.partition("-")
            if not (low.isascii() and low.isdigit() and (not dash or (high.isascii() and high.isdigit()))):
                raise ValueError
            ranges.append((int(low), int(high) if dash else int(low)))
            if ranges[-1][0] > ranges[-1][1]:
                raise ValueError
        return Reference(job, tuple(sorted(ranges)))
    except ValueError:
        raise UsageError(
            f'"{text}" is not a job or task',
            "a reference is JOB, JOB/TASK or JOB/3-9,12; tasks count from 0",
            "see: p2pc jobs",
            code="reference",
        ) from None


if TYPE_CHECKING:
    _ParamType = click.ParamType[Reference]
else:  # not generic at run time before Click 8.5
    _ParamType = click.ParamType


class ReferenceType(_ParamType):
    """JOB[/TASKS] as a parameter; completes from the node's jobs."""

    name = "reference"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Reference:
        return value if isinstance(value, Reference) else parse_reference(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return complete_jobs(incomplete)


class ReferenceOrTicketType(ReferenceType):
    """JOB, or a ticket as the reference's job."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Reference:
        if isinstance(value, str) and value.strip().startswith(TICKET_PREFIX):
            return Reference(value.strip())
        return super().convert(value, param, ctx)
