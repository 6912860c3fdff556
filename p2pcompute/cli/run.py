"""`p2pc run`: one task for each input.

Order of things: flags and files are checked and the first inputs read; then a node is found or started; then the job
is submitted and its tasks follow from a thread while results come in.  What is wrong with the request is said before
anything starts.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from p2pcompute.api.result_target import check_target
from p2pcompute.cli.command import Amount, Command, check_text, json_option
from p2pcompute.cli.completing import complete_nodes
from p2pcompute.cli.inputs import Inputs
from p2pcompute.cli.output import (
    is_terminal,
    plural,
    print_json,
    say,
)
from p2pcompute.cli.plan import (
    Function,
    TaskMaker,
    find_deps,
    find_sources,
    read_module,
    ship_function,
    ship_source,
)
from p2pcompute.cli.run_job import Run, say_unknown_names
from p2pcompute.cli.run_request import (
    COUNT_MAX,
    SUBMIT_VARIABLES,
    Request,
    block_bytes_of,
    check_flags_first,
    read_request,
    reading_of,
)
from p2pcompute.errors import UsageError
from p2pcompute.limits import PRIORITY_MAX, REPLICAS_MAX

if TYPE_CHECKING:
    from p2pcompute.execution.locking import Requirements
    from p2pcompute.execution.locks import Lock

INPUT_FLAGS: Final = ("-a", "--arg-file", "--range", "--from-json")

EXAMPLES: Final = (
    ("p2pc run 'gzip -9 -c {} | wc -c' ::: *.log", "one quoted string: the shell, {} is quoted for you"),
    ("p2pc run --pipe --block 10M -k grep -c error < big.log", "each task reads a part of standard input"),
    ("p2pc run --local convert -resize 50% {} {.}.png ::: *.jpg", "words: no shell; flags go before the command"),
    ("p2pc run --send {} --fetch {.}.png --results out convert {} {.}.png ::: *.tif", "files go along and come back"),
    ("p2pc run --range 1..500 sim.py::simulate", "a Python function, its own modules travel along"),
    ("find . -name '*.txt' -print0 | p2pc run -0 --tag wc -w", "inputs from standard input"),
    ("p2pc run --results out --resume ./experiment {1} {2} ::: a b ::: 1 2 3", "carry on where it stopped"),
)
SECTIONS: Final = {
    "Inputs": ("arg_file", "null", "colsep", "header", "max_args", "link", "range_", "from_json", "pipe", "block"),
    "Files": ("send", "fetch", "share"),
    "Where": ("require", "prefer", "on", "not_on", "trust", "local", "jobs", "priority", "explain"),
    "Belief": ("error_rate", "replicas", "verify"),
    "Limits": ("cpus", "mem", "gpus", "disk", "timeout", "sandbox", "network", "fuel", "env", "deps", "kind", "batch"),
    "Failure": ("retries", "halt", "deadline", "resume", "resume_failed", "exit_code"),
    "Output": (
        "results",
        "joblog",
        "keep_order",
        "tag",
        "line_buffer",
        "output",
        "progress",
        "plot",
        "name",
        "detach",
        "dry_run",
        "json_",
    ),
}


def _help_and_exit(context: click.Context) -> int:
    click.echo(context.get_help(), err=True)
    return 2


EPILOG: Final = """Exit codes: 0 all done, or --halt now,success=N met; 1 tasks failed; 2 wrong usage; 3 stopped early
by --halt or cancel; 4 no node can ever run it; 5 no node; 8 disputed; 124 --deadline reached; 130 Ctrl-C; 143
SIGTERM.  With --exit-code gnu: 1 to 100 = so many tasks failed, 101 = more.

Where no node stays (CI, containers, --local) one runs as long as this command; unfinished jobs of earlier runs go on
meanwhile, which is said.  --resume onto the results of an unfinished job carries that job on first."""


@click.command(
    cls=Command,
    examples=EXAMPLES,
    sections=SECTIONS,
    epilog=EPILOG,
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False},
)
@click.option("-a", "--arg-file", multiple=True, metavar="FILE", help="Read inputs from FILE, one a line; - = stdin.")
@click.option("-0", "--null", is_flag=True, help="Inputs of files and stdin are NUL-separated.")
@click.option("-C", "--colsep", metavar="REGEX", help="Split each input into {1} {2} ...")
@click.option("--header", metavar=":|REGEX", help="The first line names the columns, {name}; ':' = the whole line.")
@click.option("-n", "--max-args", type=click.IntRange(0, COUNT_MAX), metavar="N", help="Give N inputs to each task.")
@click.option("--link", is_flag=True, help="Zip input sources instead of their cross product.")
@click.option(
    "--range", "range_", metavar="A..B[:STEP]", help="Inputs are the integers A to B inclusive, down if B < A."
)
@click.option("--from-json", metavar="FILE", help="Inputs are the items of a JSON array or JSON Lines file.")
@click.option("--pipe", is_flag=True, help="Cut standard input at line ends into blocks; each task reads one.")
@click.option("--block", metavar="SIZE", default="1M", show_default=True, help="Size of a block of --pipe.")
@click.option(
    "--kind",
    type=click.Choice(["auto", "command", "shell", "python", "wasm", "container"]),
    default="auto",
    help="What TARGET is.",
)
@click.option("-j", "--jobs", metavar="N|N%", help="At most N tasks at once over the whole group.")
@click.option("--batch", metavar="auto|N", default="1", help="Calls of a function in one task; a failed one fails it.")
@click.option("--cpus", type=Amount(0, 4096), default=1.0, metavar="N", help="Cores that a task uses.")
@click.option("--mem", metavar="SIZE", help="Memory of a task, like 2G: its limit, and so much must be free.")
@click.option("--gpus", type=Amount(0, 1024), default=0.0, metavar="N", help="GPUs that a task uses.")
@click.option("--disk", metavar="SIZE", help="Disk that must be free, like 20G.")
@click.option(
    "--require",
    multiple=True,
    metavar="EXPR",
    help="Node must match: os=linux, has=ffmpeg, arch=arm64, tag=lab, 'mem>=8GiB && gpu>0'.",
)
@click.option(
    "--prefer", multiple=True, metavar="EXPR", help="Nodes where this is higher (or true) go first: cpus, -load."
)
@click.option(
    "--on", multiple=True, shell_complete=complete_nodes, metavar="NODE", help="Only these nodes, by name or ID."
)
@click.option("--not-on", multiple=True, shell_complete=complete_nodes, metavar="NODE", help="Not these nodes.")
@click.option("--local", is_flag=True, help="Only this machine.")
@click.option(
    "--send", "--transferfile", multiple=True, metavar="PATTERN", help="Send these files with each task: --send {}"
)
@click.option("--fetch", "--return", multiple=True, metavar="PATTERN", help="Bring these files back: --fetch {.}.png")
@click.option("--share", multiple=True, metavar="PATH", help="File or folder every task needs; sent once per node.")
@click.option("--env", multiple=True, metavar="KEY[=VALUE]", help="Variable of the tasks; KEY alone: as it is here.")
@click.option(
    "--deps",
    metavar="auto|none|FILE",
    default="auto",
    help="Python packages: uv.lock, requirements.txt or PEP 723 header.  auto: of the script.",
)
@click.option(
    "--results", metavar="DIR|FILE", help="Write output, files and a joblog to DIR, or all to one .jsonl, .csv or .tsv."
)
@click.option("--joblog", metavar="FILE", help="GNU parallel compatible joblog.")
@click.option("--plot", metavar="FILE", help="Draw when tasks ran where, at the end: .html .svg .png .csv .json")
@click.option("--resume", is_flag=True, help="Skip what --results or --joblog says was done, by content.")
@click.option("--resume-failed", is_flag=True, help="Like --resume, but try the failed ones again.")
@click.option(
    "--retries",
    type=click.IntRange(0),
    metavar="N",
    help=(
        "Extra attempts, on other nodes.  [default: 2]  A task whose process dies (signal, exit of the interpreter) is "
        "run up to three times whatever this says."
    ),
)
@click.option("--timeout", metavar="DURATION", help="Of one attempt, like 30s or 5m.")
@click.option(
    "--network",
    type=click.Choice(["none", "full"]),
    default="none",
    help="What tasks reach on machines of others: nothing, or public addresses where the owner allows it.  "
    "[default: none]",
)
@click.option(
    "--sandbox",
    type=click.Choice(["auto", "process", "sandbox"]),
    default="auto",
    help="sandbox: in one on your own computers too; process: only where there is none.  [default: as the node's owner "
    "says]",
)
@click.option(
    "--fuel", type=click.IntRange(1), metavar="N", help="Instructions of a WASM task, the same on every node."
)
@click.option("--halt", metavar="WHEN,WHY", help="now|soon,fail|success|done=N|N%  (GNU parallel's syntax).")
@click.option(
    "--trust", type=click.Choice(["trusted", "member", "any"]), help="Lowest trust a node may have.  [default: member]"
)
@click.option(
    "--error-rate",
    type=float,
    metavar="P",
    help="Accepted probability that a result from nodes that are not trusted is wrong.  [default: 1e-4]",
)
@click.option(
    "--replicas",
    type=click.IntRange(1, REPLICAS_MAX),
    metavar="N",
    help="Instead of --error-rate: compute every task on N nodes that are not trusted, and compare.",
)
@click.option(
    "--verify",
    type=click.Choice(["arbitrate", "credibility", "spotcheck", "majority", "boinc", "none"]),
    help="Method of checking results of nodes that are not trusted, by comparing them: a task has to give the same"
    " wherever and whenever it runs.  [default: arbitrate]",
)
@click.option("--deadline", metavar="DURATION|TIME", help="Give up on the whole job, like 2h or 18:30.")
@click.option(
    "--priority",
    type=click.IntRange(-PRIORITY_MAX, PRIORITY_MAX),
    default=0,
    metavar="N",
    help="Among your own jobs: higher ones go first, of equal ones the earliest deadline.  [default: 0]",
)
@click.option("-k", "--keep-order", is_flag=True, help="Print output in input order.")
@click.option("--tag", is_flag=True, help="Start each output line with its input.")
@click.option(
    "--line-buffer",
    "--lb",
    "line_buffer",
    is_flag=True,
    help="Print lines as they come instead of task by task; at most 16 running tasks at once.",
)
@click.option("--output", type=click.Choice(["text", "jsonl", "none"]), default="text", help="What goes to stdout.")
@click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "plain", "json", "none"]),
    default="auto",
    envvar="P2PC_PROGRESS",
    help="On stderr.  [env: P2PC_PROGRESS]",
)
@click.option("--name", metavar="NAME", help="Name of the job.")
@click.option("--detach", is_flag=True, help="Print the job's ID once its tasks are accepted, and leave.")
@click.option("--dry-run", is_flag=True, help="Show the tasks, not run them.")
@click.option(
    "--explain", is_flag=True, help="Show which nodes could run this, and why the others cannot; run nothing."
)
@click.option(
    "--exit-code",
    type=click.Choice(["p2pc", "gnu"]),
    default="p2pc",
    help="gnu: the number of failed tasks, 101 for more than 100.",
)
@json_option
@click.argument("target", metavar="TARGET")
@click.argument("args", nargs=-1, type=click.UNPROCESSED, metavar="[ARGS] [::: INPUTS]")
@click.pass_context
def run(context: click.Context, /, **flags: Any) -> int:
    """Run a command, a Python function or a WASM module once per input.

    TARGET is a command, one quoted shell string, file.py::function, package.module::function, x.wasm (a WASI
    preview 1 program), or with --kind container an image, by name or as an archive (podman save).  {} stands for the
    input, {.} {/} {//} {/.} for parts of it, {1} {2} for columns, {#} for its number from 1 (in `show`, `logs` and
    tables tasks count from 0).
    """
    words = [flags["target"], *flags["args"]]
    check_text(words)
    for name in ("mem", "disk", "timeout"):
        if flags[name] is not None and not flags[name].strip():
            raise UsageError(f"--{name} is empty", "is a variable of the shell unset?", "for no limit leave it out")
    is_stdin_free = sys.stdin is not None and not is_terminal(sys.stdin)
    block_bytes = block_bytes_of(flags)
    command, sources = find_sources(
        words,
        arg_files=flags["arg_file"],
        ranges=flags["range_"],
        from_json=flags["from_json"],
        is_stdin_free=is_stdin_free,
        block_bytes=block_bytes if flags["pipe"] else None,
    )
    if not sources:
        if any(word.partition("=")[0] in INPUT_FLAGS for word in command[1:]):
            check_flags_first(command)
        say("no inputs: they come after :::, with -a, --range or --from-json, or from a pipe\n")
        return _help_and_exit(context)
    request = read_request(
        flags, command, Inputs(sources, reading_of(flags), None if sys.stdin is None else sys.stdin.buffer)
    )
    function, lock = None, None
    requirements = find_deps(flags["deps"], request.kind, request.words)
    if requirements is not None:
        lock = _lock(requirements)
    if request.kind == "function":
        name = request.words[0]
        function = ship_function(name) if requirements is None else ship_source(name, requirements)
    elif request.kind == "wasm":
        function = read_module(request.words[0])
    maker = TaskMaker(
        request.kind,
        request.words[1:] if request.kind == "container" else request.words,
        request.files,
        function=function,
        env={name: value for name, value in request.env.items() if name not in SUBMIT_VARIABLES},
        with_keys=request.results is not None and not flags["dry_run"],
        packages_key=b"" if requirements is None else requirements.key,
        image=request.words[0] if request.kind == "container" else "",
    )
    if flags["dry_run"]:
        return _dry_run(request, maker, function, lock)
    if flags["explain"]:
        return Run(request, maker, function, lock).explain()
    if request.results is not None:
        check_target(request.results)
    return Run(request, maker, function, lock).go()


def _lock(requirements: Requirements) -> Lock:
    """Return the packages of a job, and say what they are.

    Raises:
        UsageError: they cannot be had.
    """
    from p2pcompute.execution.locking import make_lock

    lock = make_lock(requirements)
    say(f"{plural(len(lock.names), 'package')} of {requirements.path} in an environment of its own", level=1)
    if lock.built:
        names = ", ".join(lock.built[:5])
        say(f"no wheel of {names}: only nodes of this installation build what has none", level=1)
    return lock


def _dry_run(request: Request, maker: TaskMaker, function: Function | None, lock: Lock | None) -> int:
    """Print the tasks as the node would run them."""
    if request.is_json:
        tasks = []
        for seq, row in enumerate(request.inputs.rows(), start=1):
            line = maker.line(row, seq)
            tasks.append({name: value for name, value in line.items() if name != "args_b64"})
        packages = [] if lock is None else list(lock.names)
        print_json({"schema": "p2pc.dry-run/1", "kind": request.kind, "packages": packages, "tasks": tasks})
        return 0
    say(f"kind: {request.kind}", level=1)
    if function is not None and request.kind == "function":
        own = ", ".join(function.module_names) or "none"
        say(f"own modules that travel along: {own}", level=1)
    if lock is not None:
        say(f"packages: {', '.join(lock.names) or 'none'}", level=1)
    count = 0
    for count, row in enumerate(request.inputs.rows(), start=1):
        if count == 1:
            say_unknown_names(request, row)
        maker.line(row, count)
        print(maker.text(row, count))
    say(f"{plural(count, 'task')}; nothing was run", level=1)
    return 0
