"""The command `p2pc`: finds the command, prints its errors, chooses the exit code.

Commands are imported when they are called, so that `status`, `--help` and completion start fast; this module and
what it imports stay within the standard library and Click.

Exit codes: 0 done, 1 tasks failed, 2 wrong usage or config, 3 stopped early, 4 no node fits, 5 no node here, 6
refused, 7 not finished, 70 bug, 130 Ctrl-C, 141 the reader of stdout has gone, 143 SIGTERM.
"""

from __future__ import annotations

import codecs
import contextlib
import difflib
import errno
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import click

from p2pcompute.cli.command import CONTEXT, Command, global_options, set_global
from p2pcompute.cli.output import EXIT_HANGUP, EXIT_INTERRUPTED, Options, has_color, in_group, print_json
from p2pcompute.errors import (
    ChannelLost,
    IdentityError,
    LocalProtocolError,
    NodeUnavailable,
    NoEligibleNode,
    P2pcError,
    StoreError,
    TaskError,
    TrustError,
    UsageError,
    VersionMismatch,
)

EXIT_BUG: Final = 70
EXIT_PIPE: Final = 141
_WORD_CHARS_MAX: Final = 512
_LINE_CHARS_MAX: Final = 8192
_LONG_CHARS_SHOWN: Final = 60

_EXIT_BY_CLASS: Final[tuple[tuple[type[P2pcError], int], ...]] = (
    (UsageError, 2),
    (NodeUnavailable, 5),
    (VersionMismatch, 5),
    (IdentityError, 5),
    (StoreError, 5),
    (ChannelLost, 5),
    (TrustError, 6),
    (NoEligibleNode, 4),
    (TaskError, 1),
    (LocalProtocolError, EXIT_BUG),
)
_EXIT_BY_CODE: Final = {
    "no-node": 5,
    "version": 5,
    "identity": 5,
    "store": 5,
    "channel-lost": 5,
    "refused": 6,
    "bad-code": 6,
    "no-node-fits": 4,
    "task": 1,
    "worker-died": 1,
    "not-finished": 7,
    "bug": EXIT_BUG,
    "internal": EXIT_BUG,
}
"""Errors that came from the node over HTTP keep only their code."""

_JOBS: Final = "p2pcompute.cli.job_commands"
_OUTPUT: Final = "p2pcompute.cli.job_output"
_NODE: Final = "p2pcompute.cli.node_commands"
_WATCH: Final = "p2pcompute.cli.watch_commands"
_INVITE: Final = "p2pcompute.cli.invite_commands"
_COMFORT: Final = "p2pcompute.cli.comfort_commands"
_FIND: Final = "p2pcompute.cli.find_commands"
COMMANDS: Final[dict[str, dict[str, tuple[str, str]]]] = {
    "Work": {
        "run": ("p2pcompute.cli.run", "Run a command or a Python function once per input."),
        "demo": ("p2pcompute.cli.demo", "Estimate pi on every node and show who did what."),
        "jobs": (_JOBS, "List jobs."),
        "show": (_JOBS, "Everything about one job or task."),
        "explain": ("p2pcompute.cli.explain", "Why is it not running?"),
        "logs": (_OUTPUT, "Output of tasks, also from nodes that have left."),
        "plot": ("p2pcompute.cli.plot_command", "Pictures of a job: results over time, who did what when."),
        "result": (_OUTPUT, "Print or export results."),
        "wait": (_JOBS, "Wait for jobs; exit with the job's exit code."),
        "attach": (_JOBS, "Show the live view of a running job again."),
        "cancel": (_JOBS, "Cancel jobs or tasks."),
        "retry": (_JOBS, "Run failed tasks of a job again."),
        "prune": (_JOBS, "Free disk space used by finished jobs."),
    },
    "Watch": {"status": (_WATCH, "This node, its group, and anything that needs attention.")},
    "This machine": {
        "node": (_NODE, "Run this machine's node in the foreground; subcommands control it."),
        "pause": (_COMFORT, "Stop taking work."),
        "resume": (_COMFORT, "Take work again."),
        "service": ("p2pcompute.cli.service_commands", "Start the node with the computer."),
    },
    "Group": {
        "invite": (_INVITE, "Let another computer join the group."),
        "join": (_INVITE, "Join a group."),
        "leave": ("p2pcompute.cli.group_commands", "Give up membership of the group."),
        "peers": (_WATCH, "Members, how they are reached, and what they offer."),
        "group": ("p2pcompute.cli.group_commands", "Groups of this computer, their members, and what they may do."),
        "trust": ("p2pcompute.cli.trust_commands", "How far this computer trusts others."),
        "find": (_FIND, "Nodes that match an expression, with the age of what is known."),
        "when": (_FIND, "Wait until some node matches an expression, then print it."),
    },
    "Upkeep": {
        "config": ("p2pcompute.cli.config_commands", "Settings files."),
        "doctor": ("p2pcompute.cli.doctor", "Check this machine and say what to do."),
        "completion": ("p2pcompute.cli.completion", "Shell completion script."),
        "version": (_WATCH, "Versions of command and node, and whether they fit."),
        "sim": ("p2pcompute.cli.sim_commands", "Simulate a mesh on this machine, in virtual time."),
    },
}
"""Section → command → (module, short help).  A command is the module's attribute of that name, or NAME_command."""
MEANT: Final = {
    **dict.fromkeys(("start", "up", "daemon"), "p2pc node start"),
    **dict.fromkeys(("stop", "down", "quit", "shutdown"), "p2pc node stop"),
    "restart": "p2pc node restart",
    "set": "p2pc node set, for this machine, or p2pc config set",
    "idle": "p2pc node idle",
    **dict.fromkeys(
        ("ps", "ls", "list", "queue", "top", "qstat", "squeue"), "p2pc jobs, for jobs, or p2pc status, for nodes"
    ),
    **dict.fromkeys(("submit", "exec", "map", "batch", "qsub", "sbatch"), "p2pc run"),
    **dict.fromkeys(("kill", "abort", "rm", "del", "qdel", "scancel"), "p2pc cancel"),
    **dict.fromkeys(("log", "output", "tail"), "p2pc logs"),
    **dict.fromkeys(("nodes", "members", "workers", "hosts"), "p2pc peers"),
    **dict.fromkeys(("fetch", "results", "get"), "p2pc result"),
    **dict.fromkeys(("task", "tasks"), "p2pc show JOB --tasks"),
    **dict.fromkeys(("history", "q"), "p2pc jobs"),
    **dict.fromkeys(("hold", "suspend", "freeze"), "p2pc pause, for this machine, or p2pc cancel, for a job"),
    **dict.fromkeys(("release", "continue", "unpause"), "p2pc resume, for this machine, or p2pc retry, for a job"),
    **dict.fromkeys(("rerun", "requeue", "resubmit"), "p2pc retry"),
    **dict.fromkeys(("analyze", "why"), "p2pc explain"),
    **dict.fromkeys(
        ("info", "inspect", "describe", "stat", "stats"), "p2pc show, for a job, or p2pc status, for nodes"
    ),
    "search": "p2pc find",
    "init": "p2pc run, which needs nothing before, or p2pc invite, for a second computer",
    "settings": "p2pc node set, for this machine, or p2pc config show",
    "simulate": "p2pc sim",
    "uninstall": "p2pc service uninstall; p2pc leave --forget-keys; then pip or pipx uninstall p2pcompute",
    "help": "p2pc --help, or p2pc COMMAND --help",
    "parallel": "p2pc run",
}
"""Words that people bring along from other programs, and what they are here."""


EDITS_MAX: Final = 2
"""Typing errors in a command or flag that is still recognised."""
_NOT_YET: Final = "GNU parallel has it; it is not there yet"
_PARALLEL_FLAGS: Final = {
    "--bar": "progress is shown by itself",
    "--eta": "progress is shown by itself, with an ETA",
    "--dryrun": 'it is "--dry-run"',
    "-N": 'it is "-n"',
    "--max-replace-args": 'it is "-n"',
    "-P": 'it is "-j"',
    "--max-procs": 'it is "-j"',
    "--ungroup": "output comes task by task",
    "-u": "output comes task by task",
    "--group": "output comes task by task anyway",
    "--keeporder": 'it is "--keep-order"',
    "--xapply": 'it is "--link"',
    "--quote": "words run without a shell anyway; one quoted string runs in sh",
    "-S": "use p2pc join on the other computer; it then takes part by itself",
    "--sshlogin": "use p2pc join on the other computer; it then takes part by itself",
    "--sshloginfile": "use p2pc join on the other computers; they then take part by themselves",
    **dict.fromkeys(
        (
            "--wd",
            "--workdir",
            "--pipepart",
            "--delay",
            "--shuf",
            "--tagstring",
            "-X",
            "-m",
            "-I",
            "--trim",
            "--nice",
            "--load",
            "--memfree",
            "--basefile",
            "--cleanup",
            "--plus",
        ),
        _NOT_YET,
    ),
}
"""Flags that hands know from GNU parallel, and what to do instead."""


class ReaderGone(Exception):
    """Nobody reads our stdout any more."""


class LazyGroup(click.Group):
    """Imports the module of a command when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for section in COMMANDS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for section in COMMANDS.values():
            if cmd_name in section:
                module = importlib.import_module(section[cmd_name][0])
                command = getattr(module, f"{cmd_name}_command", None) or getattr(module, cmd_name)
                assert isinstance(command, click.Command)
                return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None and not ctx.resilient_parsing:
            if name in MEANT:
                raise UsageError(f"there is no command {name!r}", "", MEANT[name])
            near = _near_command(name, self.list_commands(ctx))
            raise UsageError(
                f"there is no command {name!r}", f'did you mean "{near}"?' if near else "", "see: p2pc --help"
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            # Click would end the process with exit code 1.
            raise ReaderGone from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(len(name) for name in self.list_commands(ctx))
        for title, section in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, (_, text) in section.items()])

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_help_text(ctx, formatter)
        with formatter.section("Examples"):
            for typed in ("p2pc demo", "p2pc run 'echo {}' ::: a b c", "p2pc run --range 1..500 sim.py::simulate"):
                formatter.write(f"{'':>{formatter.current_indent}}{typed}\n")
        formatter.write_paragraph()
        self.format_usage(ctx, formatter)
        self.format_options(ctx, formatter)


def _version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from p2pcompute.version import VERSION

        click.echo(f"p2pc {VERSION}")
        context.exit()


@click.group(name="p2pc", cls=LazyGroup, context_settings=CONTEXT, invoke_without_command=True)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
@click.pass_context
def p2pc(context: click.Context) -> int | None:
    """Run work on every computer you own."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
    return None


def _root_options() -> list[click.Option]:
    options = global_options()
    for option in options:
        option.expose_value, option.callback = False, set_global
    return options


p2pc.params[:0] = _root_options()


def exit_code_of(error: P2pcError) -> int:
    """Return the exit code that an error ends the command with."""
    by_code = _EXIT_BY_CODE.get(error.code)
    if by_code is not None:
        return by_code
    return next((code for kind, code in _EXIT_BY_CLASS if isinstance(error, kind)), 2)


def error_document(error: P2pcError, group: str = "") -> dict[str, Any]:
    """Return a p2pc.error/1 document."""
    fix = error.fix and in_group(error.fix, group)
    return {"schema": "p2pc.error/1", "code": error.code, "what": error.what, "why": error.why, "fix": fix}


def format_error(error: P2pcError, more: str = "", group: str = "", color: str | None = None) -> str:
    """Return the text of an error: what, why, fix, where to read more; the most useful line last."""
    head = f"error[{_plain(error.code)}]:"
    if has_color(sys.stderr, color):
        head = click.style(head, fg="red", bold=True)
    lines = [f"{head} {_plain(error.what)}"]
    for label, text in (("why: ", error.why), ("fix: ", in_group(error.fix or "", group)), ("more:", more)):
        if text:
            lines.append(f"  {label} " + _plain(text).replace("\n", "\n        "))
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Return text without what a terminal takes for a command: it may have come from a peer, or from a link.

    Of a very long word, or line, which only repeats what was given, there is the beginning.
    """
    plain = "".join(char if char.isprintable() or char == "\n" else " " for char in text)
    if len(plain) <= _WORD_CHARS_MAX:
        return plain
    for pattern in (rf"\S{{{_WORD_CHARS_MAX},}}", rf"[^\n]{{{_LINE_CHARS_MAX},}}"):
        plain = re.sub(pattern, lambda long: f"{long[0][:_LONG_CHARS_SHOWN]}… ({len(long[0]):,} characters)", plain)
    return plain


def _wants_json(context: click.Context | None, arguments: Sequence[str]) -> bool:
    """True when --json is among the command's own flags, also when these could not be parsed.

    Words after the first positional of `run` belong to the command that it runs.
    """
    if context is None or context.command is None:
        return False
    if context.find_object(Options) is not None and context.ensure_object(Options).json:
        return True
    own = {option: param for param in context.command.params for option in param.opts}
    if "--json" not in own or context.info_name not in arguments:
        return False
    words = list(arguments[list(arguments).index(context.info_name or "") + 1 :])
    while words:
        word = words.pop(0)
        if word == "--json":
            return True
        if not word.startswith("-") or word in ("-", "--"):
            if not context.allow_interspersed_args:
                return False
            continue
        param = own.get(word)
        if isinstance(param, click.Option) and not param.is_flag and not param.count and words:
            words.pop(0)
    return False


def _near_command(name: str, known: Sequence[str]) -> str | None:
    """Return the command that was probably meant: nothing is better than nonsense."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return near[0] if near and _edits(near[0], name) <= EDITS_MAX else None


def _near_flag(name: str, known: Sequence[str]) -> str | None:
    """Return the flag that was probably meant: nothing is better than nonsense."""
    if len(name) < 5:
        return None
    for near in difflib.get_close_matches(name, known, n=3, cutoff=0.7):
        if near.lstrip("-")[:1] == name.lstrip("-")[:1] or _edits(near, name) <= EDITS_MAX:
            return near
    return None


def _edits(one: str, other: str) -> int:
    """Return how many characters to add, drop or change between two words."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


_IS_HELP: Final = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""What Click 8.2 and later raises for a group without a command: the error is the help."""


def _from_click(error: click.ClickException) -> tuple[P2pcError, str]:
    """Return our form of an error of the command line, and where to read more."""
    context = getattr(error, "ctx", None)
    more = f"{context.command_path} --help" if context is not None else ""
    if isinstance(error, click.NoSuchOption):
        known = [option for param in context.command.params for option in param.opts] if context else []
        what = f"there is no flag {error.option_name}"
        if context is not None and context.info_name == "run" and error.option_name in _PARALLEL_FLAGS:
            return UsageError(what, _PARALLEL_FLAGS[error.option_name]), more
        near = _near_flag(error.option_name, known)
        return UsageError(what, f'did you mean "{near}"?' if near else ""), more
    if isinstance(error, click.MissingParameter) and error.param is not None and context is not None:
        examples = context.command.examples if isinstance(context.command, Command) else ()
        typed = f"for example: {examples[0][0]}" if examples else ""
        return UsageError(f"{error.param.human_readable_name} is missing", "", typed), more
    text = error.format_message().rstrip(".")
    if (missing := re.match(r"No such command '(.+?)'", text)) is not None and context is not None:
        what, name = f"there is no command '{context.command_path} {missing[1]}'", missing[1]
        if any(name in section for section in COMMANDS.values()):
            return UsageError(what, "", f"p2pc {name}"), more
        if name in MEANT:
            return UsageError(what, "", MEANT[name]), more
    return UsageError(text[:1].lower() + text[1:] if text[1:2].islower() else text), more


def _show(error: P2pcError, more: str, *, as_json: bool, flags: Options) -> int:
    if as_json:
        print_json(error_document(error, flags.group))
    else:
        print(format_error(error, more, flags.group, flags.color), file=sys.stderr)
    if flags.verbose or os.environ.get("P2PC_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    return exit_code_of(error)


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors are printed."""
    flags = Options(typed=tuple(arguments))
    context: click.Context | None = None
    try:
        result = p2pc.main(list(arguments), prog_name="p2pc", standalone_mode=False, obj=flags)
        code = result if isinstance(result, int) else 0
        if code != EXIT_HANGUP:  # else there is no terminal left to write to
            sys.stdout.flush()
        return code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        if isinstance(error, _IS_HELP):
            print(error.format_message(), file=sys.stderr)
            return 2
        ours, more = _from_click(error)
        return _show(ours, more, as_json=flags.json or _wants_json(context, arguments), flags=flags)
    except P2pcError as error:
        return _show(error, "", as_json=flags.json, flags=flags)
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except (ReaderGone, BrokenPipeError):
        return EXIT_PIPE
    except UnicodeEncodeError as error:
        is_ours = any("\udc80" <= char <= "\udcff" for char in error.object)
        return _show(_NOT_TEXT if is_ours else _bug(error), "", as_json=flags.json, flags=flags)
    except FileNotFoundError as error:
        return _show(_bug(error) if _is_cwd_there() else _CWD_GONE, "", as_json=flags.json, flags=flags)
    except OSError as error:
        shown = _OUTPUT_LOST.get(error.errno or 0) if error.filename is None else None
        return _show(shown or _bug(error), "", as_json=False, flags=flags)
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug is said to be one
        return _show(_bug(error), "", as_json=flags.json, flags=flags)


_CWD_GONE: Final = UsageError(
    "the current directory does not exist any more",
    "it was removed or moved away under this shell",
    "change to one that exists: cd ~",
    code="cwd-gone",
)


_OUTPUT_FULL: Final = P2pcError(
    "the output cannot be written", "there is no space left where it goes", "write it elsewhere", code="output"
)
_OUTPUT_CLOSED: Final = P2pcError(
    "the output cannot be written",
    "standard output is closed",
    "to have none: >/dev/null; what a job gave is printed again by: p2pc result last",
    code="output",
)
_OUTPUT_LOST: Final = {errno.ENOSPC: _OUTPUT_FULL, errno.EDQUOT: _OUTPUT_FULL, errno.EBADF: _OUTPUT_CLOSED}
_NOT_TEXT: Final = UsageError(
    "an argument is not UTF-8", "p2pc takes names and values as text", "write it in UTF-8", code="encoding"
)


def _is_cwd_there() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _bug(error: Exception) -> P2pcError:
    bug = P2pcError(
        f"a bug in p2pc: {type(error).__name__}: {error}",
        "this should not happen; your jobs are not affected",
        "run it again with P2PC_TRACEBACK=1 and report what it prints",
        code="bug",
    )
    bug.__cause__ = error
    return bug


_ASCII: Final = str.maketrans({"·": "-", "–": "-", "…": "...", "≈": "~", "×": "x", "━": "=", "╸": "=", "✓": "ok"})


def _to_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(_ASCII)
    return text.encode("ascii", "backslashreplace").decode(), error.end


def main() -> NoReturn:
    """Entry point of the console script."""
    codecs.register_error("p2pc", _to_ascii)
    # Closed by who called us.  Their numbers are taken, or files that are opened later would get them.
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)
    # What cannot be written must fail, not vanish: a descriptor for reading.
    sys.stdout = sys.stdout or open(os.open(os.devnull, os.O_RDONLY), "w")  # noqa: SIM115 - ours until the end
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 - likewise
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="p2pc" if stream.encoding.lower() != "utf-8" else "backslashreplace")
    code = run_command(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            code = code or EXIT_PIPE
        except (OSError, ValueError):
            pass  # the terminal has gone, or the stream is closed
        else:
            if code != EXIT_PIPE:
                continue
        with contextlib.suppress(OSError, ValueError):
            # The interpreter flushes once more at its end, would complain and exit with 120.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


if __name__ == "__main__":
    main()
