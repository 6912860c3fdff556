"""`p2pc run`: one task for each input.

Order of things: flags and files are checked and the first inputs read; then a node is found or started; then the job
is submitted and its tasks follow from a thread while results come in.  What is wrong with the request is said before
anything starts.
"""

from __future__ import annotations

import base64
import itertools
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from p2pcompute.api.result_keys import DoneKeys, read_done_keys
from p2pcompute.api.result_target import ResultsTarget, check_target, is_results_file
from p2pcompute.cli.command import Amount, Command, Reference, check_text, json_option
from p2pcompute.cli.inputs import BLOCK_BYTES_MAX, Inputs, Reading, Row
from p2pcompute.cli.output import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    count_text,
    is_terminal,
    one_line,
    plural,
    print_json,
    say,
)
from p2pcompute.cli.plan import (
    PEEKED_ROWS,
    Chunker,
    Files,
    Function,
    Tally,
    TaskMaker,
    check_executable,
    check_fetch_names,
    check_local_files,
    check_module_files,
    check_readable,
    file_line,
    find_deps,
    find_sources,
    make_lines,
    read_module,
    read_target,
    ship_function,
    ship_source,
    what_varies,
)
from p2pcompute.cli.replacement import parse as parse_replacement
from p2pcompute.cli.replacement import unknown_names
from p2pcompute.errors import P2pcError, UsageError
from p2pcompute.limits import PRIORITY_MAX, REPLICAS_MAX

if TYPE_CHECKING:
    from p2pcompute.execution.locking import Requirements
    from p2pcompute.execution.locks import Lock
    from p2pcompute.resources.matching import Needs

SUBMIT_VARIABLES: Final = ("P2PC_SUBMIT_DIR", "P2PC_SUBMIT_HOST")
"""On this machine tasks without files of their own run in the directory where `run` was called, as under a shell."""
UPLOAD_LINES: Final = 512
UPLOAD_BYTES: Final = 1024 * 1024
"""Tasks sent in one request: kept until the node has them."""
JOB_NAME_CHARS: Final = 40
MEM_BYTES_MIN: Final = 2**20
"""Who says less has left out the unit."""
COUNT_DIGITS_MAX: Final = 6
COUNT_MAX: Final = 10**COUNT_DIGITS_MAX - 1
"""Largest -j, -n and --batch."""
NEEDS: Final = (
    *("cpus", "mem_bytes", "gpus", "disk_bytes", "packages_b64", "platforms", "is_built"),
    *("sandbox", "network"),
)
"""Of a job's spec: what a task asks of a node."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The flags of `run`, read."""

    words: list[str]
    """The command, without its inputs."""
    kind: str
    """command, shell, function or wasm."""
    inputs: Inputs
    files: Files
    env: dict[str, str]
    results: ResultsTarget | None
    retry_failed: bool
    resume: bool
    needs: Needs | None
    """None: any node will do."""
    on: list[str]
    not_on: list[str]
    timeout_s: float | None
    has_network: bool
    sandbox: str
    """Empty: as the node's owner says."""
    fuel: int | None
    retries: int
    slots: str | None
    """-j as given."""
    halt: str
    priority: int
    deadline_ms: int | None
    """When the job is given up, Unix milliseconds."""
    demands: dict[str, Any]
    """Whose results are believed: the terms of the job that say so."""
    local: bool
    batch: str
    keep_order: bool
    tag: bool
    is_live: bool
    """Lines are printed as they come."""
    output: str
    progress: str
    plot: Path | None
    """Where its pictures go at the end."""
    name: str
    exit_style: str
    is_detached: bool
    is_explained: bool
    is_json: bool


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
@click.option("--on", multiple=True, metavar="NODE", help="Only these nodes, by name or ID.")
@click.option("--not-on", multiple=True, metavar="NODE", help="Not these nodes.")
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
    block_bytes = _block_bytes(flags)
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
            _check_flags_first(command)
        say("no inputs: they come after :::, with -a, --range or --from-json, or from a pipe\n")
        return _help_and_exit(context)
    request = _read_request(
        flags, command, Inputs(sources, _reading(flags), None if sys.stdin is None else sys.stdin.buffer)
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
        return _Run(request, maker, function, lock).explain()
    if request.results is not None:
        check_target(request.results)
    return _Run(request, maker, function, lock).go()


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


def _block_bytes(flags: Mapping[str, Any]) -> int:
    from p2pcompute.config import parse_size

    for name, flag in (("max_args", "-n"), ("colsep", "-C"), ("link", "--link")):
        if flags["pipe"] and flags[name]:
            raise UsageError(f"{flag} does not go with --pipe", "tasks read lines, they get no words", "--block SIZE")
    if flags["pipe"] and flags["header"] not in (None, ":"):
        raise UsageError("--header of --pipe is the whole first line", "each block begins with it", "--header :")
    size = parse_size(flags["block"])
    if not 1 <= size <= BLOCK_BYTES_MAX:
        raise UsageError(
            f"--block {flags['block']} is not from 1 to {BLOCK_BYTES_MAX >> 20}M",
            "",
            "larger parts go as files: split, then --send",
        )
    return size


def _reading(flags: Mapping[str, Any]) -> Reading:
    return Reading(
        null=flags["null"],
        colsep=flags["colsep"],
        header=flags["header"],
        max_args=flags["max_args"],
        link=flags["link"],
    )


def _check_shut_in(flags: Mapping[str, Any], kind: str) -> None:
    """Refuse flags that would do nothing for what is always shut in.

    Raises:
        UsageError: one is given.
    """
    name = {"wasm": "a WASM module", "container": "a container"}[kind]
    if flags["network"] == "full":
        raise UsageError(f"--network full is not for {name}", "it never has a network", "leave it out")
    if flags["deps"] not in ("auto", "none"):
        raise UsageError(f"--deps is not for {name}", "it brings all that it needs", "leave it out")


def _demands(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the flags say about whose results are believed, as terms of the job.

    Raises:
        UsageError: it cannot be meant.
    """
    from p2pcompute.scheduler.terms import check_demands, error_ppb_of

    error_ppb = None if flags["error_rate"] is None else error_ppb_of(flags["error_rate"])
    check_demands(flags["trust"] or "", flags["verify"] or "", error_ppb, flags["replicas"])
    if flags["verify"] == "none" and (error_ppb or flags["replicas"]):
        raise UsageError("--verify none checks nothing", "--error-rate and --replicas say how results are checked")
    named = {"trust": flags["trust"], "verify": flags["verify"], "error_ppb": error_ppb, "replicas": flags["replicas"]}
    return {name: value for name, value in named.items() if value is not None}


def _read_request(flags: Mapping[str, Any], command: list[str], inputs: Inputs) -> Request:
    from p2pcompute.config import find_project_file, load_settings, parse_duration, parse_size
    from p2pcompute.places import find_paths

    settings = load_settings(
        find_paths(os.environ),
        os.environ,
        flags={f"run.{name}": flags[name] for name in ("mem", "retries", "timeout")},
        project=find_project_file(Path.cwd()),
        warn=lambda text: say(f"note: {text}", level=1),
    ).run
    kind = read_target(command, flags["kind"])
    if kind == "function" and len(command) > 1:
        _check_flags_first(command)
        raise UsageError(
            f"{command[0]} takes its inputs after :::",
            f"what is {command[1]!r}?",
            f"p2pc run {command[0]} ::: {command[1]}",
        )
    if flags["max_args"] == 0 and kind == "function":
        raise UsageError("-n 0 gives a function nothing to call it with")
    if kind != "function":
        _check_words(command)
    elif flags["pipe"]:
        raise UsageError("--pipe is for commands", "a function reads no standard input", "-a FILE gives it the lines")
    if kind == "container":
        _check_image(command[0])
    files = Files(send=flags["send"], fetch=flags["fetch"], share=flags["share"])
    for path in files.share:
        file_line(path, "--share")
    for pattern in files.send:
        if all(isinstance(part, str) for part in parse_replacement(pattern)):
            file_line(pattern, "--send")
    if kind == "command":
        check_executable(command, files, only_here=flags["local"])
    _check_halt(flags["halt"])
    batch = flags["batch"]
    if batch != "auto" and not re.fullmatch(r"0*[1-9]\d*", batch):
        raise UsageError(f"--batch {batch!r} is not a number or auto")
    if len(batch) > COUNT_DIGITS_MAX:
        raise UsageError(f"--batch {batch} is too large", f"it is up to {COUNT_MAX}", "--batch auto")
    if flags["fuel"] is not None and kind != "wasm":
        raise UsageError("--fuel is for WASM", "instructions of other programs are not counted", "use --timeout")
    if kind in ("wasm", "container"):
        _check_shut_in(flags, kind)
    if batch != "1" and kind != "function":
        raise UsageError("--batch is for functions", "a command is one process for each input", "use -n N instead")
    jobs = flags["jobs"]
    if jobs is not None and not re.fullmatch(r"\d+%?", jobs):
        raise UsageError(f"-j {jobs!r} is not a number of tasks", fix="-j 8, or -j 50%")
    if jobs is not None and len(jobs.rstrip("%")) > COUNT_DIGITS_MAX:
        raise UsageError(f"-j {jobs} is too large", f"it is up to {COUNT_MAX}", "without -j there is no bound")
    resume = flags["resume"] or flags["resume_failed"]
    results = _results_target(flags, files, resume=resume)
    env = _environment(flags["env"])
    if kind in ("wasm", "container"):  # sees its own directory and nothing else of any machine
        pass
    elif not files.needs_directory:
        env = dict(zip(SUBMIT_VARIABLES, (os.getcwd(), os.uname().nodename), strict=True)) | env
    return Request(
        words=command,
        kind=kind,
        inputs=inputs,
        files=files,
        env=env,
        results=results,
        retry_failed=flags["resume_failed"],
        resume=resume,
        needs=_needs(flags, parse_size(settings.mem) if settings.mem else None),
        on=list(flags["on"]),
        not_on=list(flags["not_on"]),
        timeout_s=parse_duration(settings.timeout) if settings.timeout else None,
        has_network=flags["network"] == "full",
        sandbox=_sandbox(flags["sandbox"], kind),
        fuel=flags["fuel"],
        retries=settings.retries,
        slots=flags["jobs"],
        halt=flags["halt"] or "",
        priority=flags["priority"],
        deadline_ms=_deadline_ms(flags["deadline"]),
        demands=_demands(flags),
        local=flags["local"],
        batch=batch,
        keep_order=flags["keep_order"],
        tag=flags["tag"],
        is_live=_is_live(flags),
        output="none" if flags["json_"] else flags["output"],
        progress=flags["progress"],
        name=flags["name"] or _job_name(command, kind),
        plot=_picture_path(flags["plot"]),
        exit_style=flags["exit_code"],
        is_detached=flags["detach"],
        is_explained=flags["explain"],
        is_json=flags["json_"],
    )


def _needs(flags: Mapping[str, Any], mem_bytes: int | None) -> Needs | None:
    """Return what a task asks of a node.

    Raises:
        UsageError: no node could ever answer that; it points at the column.
    """
    from p2pcompute.config import parse_size

    if mem_bytes is not None and mem_bytes < MEM_BYTES_MIN:
        raise UsageError(
            f"--mem is only {mem_bytes} bytes", "no program runs in that", "say the unit, like --mem 500M or --mem 2G"
        )
    asked = any(flags[name] for name in ("require", "prefer", "gpus", "disk")) or mem_bytes or flags["cpus"] != 1
    if not asked:
        return None
    from p2pcompute.resources.matching import Needs, check_needs

    needs = Needs(
        require=flags["require"],
        prefer=flags["prefer"],
        cpus=flags["cpus"],
        mem_bytes=mem_bytes,
        gpus=flags["gpus"],
        disk_bytes=parse_size(flags["disk"]) if flags["disk"] else None,
    )
    check_needs(needs)
    return needs


def _check_flags_first(words: Sequence[str]) -> None:
    """Refuse flags of `run` among the words of a command that takes no words.

    Raises:
        UsageError: there are some; the fix has them at their place.
    """
    known = {name: param for param in run.params if isinstance(param, click.Option) for name in param.opts}
    flags: list[str] = []
    rest = list(words[1:])
    others = [words[0]]
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        param = known.get(name)
        (flags if param is not None else others).append(word)
        if param is not None and not (param.is_flag or param.count or equals) and rest:
            flags.append(rest.pop(0))
    if flags:
        raise UsageError(
            f"{flags[0]} comes after the command",
            "flags go before the command",
            f"p2pc run {shlex.join([*flags, *others])}",
            code="flag-order",
        )


def _say_unknown_names(request: Request, row: Row) -> None:
    """Say what looks like a replacement string and is none."""
    unknown = [] if request.kind == "function" else unknown_names(request.words, row.names)
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in row.names if name.isidentifier())
        why = f"the inputs have {known}" if known else "names come with --header :"
        left = "is no replacement string and stays" if len(unknown) == 1 else "are no replacement strings and stay"
        say(f"note: {' '.join(unknown)} {left} as typed; {why}", level=1)


def _check_words(words: Sequence[str]) -> None:
    if not words[0].strip():
        raise UsageError("there is no command", "its first word is empty", "p2pc run COMMAND ::: INPUT...")
    for word in words:
        if re.search(r"\{=.*=\}", word, re.DOTALL):
            raise UsageError(
                "Perl expressions are not supported",
                f"{one_line(word, 60)} has one",
                "use {} {.} {/} {//} {/.} {#} or a shell command",
                code="perl",
            )


def _check_image(name: str) -> None:
    """Refuse what is neither the name of an image nor an archive of one.

    Raises:
        UsageError: it cannot be.
    """
    from p2pcompute.execution.spec import IMAGE_NAME

    if os.path.isfile(name):
        check_readable(name, "image")
    elif not IMAGE_NAME.fullmatch(name) or name.endswith(".tar"):
        raise UsageError(
            f"there is no image {name!r}",
            "it is no file here, and no name of an image" if not name.endswith(".tar") else "there is no such file",
            "podman save -o image.tar NAME; p2pc run --kind container image.tar …",
            code="image",
        )


def _is_live(flags: Mapping[str, Any]) -> bool:
    """Return whether lines are printed as they come.

    Raises:
        UsageError: another flag says that they are not.
    """
    if not flags["line_buffer"]:
        return False
    for other, is_given in (
        ("--keep-order", flags["keep_order"]),
        ("--detach", flags["detach"]),
        ("--json", flags["json_"]),
        (f"--output {flags['output']}", flags["output"] != "text"),
    ):
        if is_given:
            raise UsageError(f"--lb and {other} cannot both be", "lines come as tasks print them", "leave one out")
    return True


def _sandbox(word: str, kind: str) -> str:
    """Return what the job says of sandboxes.

    Raises:
        UsageError: its tasks have a fence of their own.
    """
    if word == "auto":
        return ""
    if kind in ("wasm", "container"):
        raise UsageError(f"--sandbox {word} is not for {kind}", "such a task is always shut in", "leave it out")
    return word


def _job_name(command: list[str], kind: str) -> str:
    if kind == "function":
        return command[0].rpartition("::")[2][:JOB_NAME_CHARS]
    first = command[0].split()[0] if command[0].split() else kind
    return os.path.basename(first)[:JOB_NAME_CHARS] or kind


def _environment(items: tuple[str, ...]) -> dict[str, str]:
    env: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise UsageError(f"--env {item!r} names no variable", fix="--env NAME=VALUE")
        if not equals:
            if name not in os.environ:
                raise UsageError(f"--env {name}: there is no such variable here", "", f"--env {name}=VALUE")
            value = os.environ[name]
        env[name] = value
    check_text(list(env.values()))
    return env


def _deadline_ms(text: str | None) -> int | None:
    """Return the moment as Unix milliseconds; None for none."""
    if text is None:
        return None
    from datetime import datetime

    from p2pcompute.cli.moments import parse_deadline

    return int(parse_deadline(text, datetime.now().astimezone()).timestamp() * 1000)


def _check_halt(text: str | None) -> None:
    if text is None or text == "never":
        return
    match = re.fullmatch(r"(now|soon),(fail|success|done)=(\d{1,9})(%?)", text)
    if match is None or int(match[3]) == 0 or (match[4] and int(match[3]) > 100):
        raise UsageError(
            f"--halt {text!r} is not a rule", "it is now|soon,fail|success|done=N or N%", "--halt soon,fail=1"
        )


def _picture_path(name: str | None) -> Path | None:
    if name is None:
        return None
    from p2pcompute.plots.drawing import check_picture

    check_picture(Path(name))
    return Path(name)


def _results_target(flags: Mapping[str, Any], files: Files, *, resume: bool) -> ResultsTarget | None:
    """Return where results go."""
    results, joblog = flags["results"], flags["joblog"]
    if resume and not results and not joblog:
        raise UsageError(
            "--resume needs to know what was done", "neither --results nor --joblog is given", "--results out --resume"
        )
    if not results and not joblog and not files.fetch:
        return None
    return ResultsTarget(
        dir=Path(os.path.abspath(results)) if results and not is_results_file(results) else None,
        file=Path(os.path.abspath(results)) if results and is_results_file(results) else None,
        joblog=Path(os.path.abspath(joblog)) if joblog else None,
        files_dir=Path.cwd() if files.fetch and not (results and not is_results_file(results)) else None,
        resume=resume,
    )


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
            _say_unknown_names(request, row)
        maker.line(row, count)
        print(maker.text(row, count))
    say(f"{plural(count, 'task')}; nothing was run", level=1)
    return 0


@dataclass(slots=True)
class _Run:
    """One run, from its first input to its exit code."""

    request: Request
    maker: TaskMaker
    function: Function | None
    lock: Lock | None
    """Of its packages."""
    tally: Tally = field(default_factory=Tally)
    started: float = field(default_factory=time.monotonic)
    _chunker: Chunker = field(init=False)
    _connection: Any = None
    """Of the node, once it was needed."""
    _is_new: bool = False
    """The node was started for this run."""
    _failures: Any = None
    _is_stopping: bool = False
    _is_tallied: bool = False
    """What was done before has been said."""

    def go(self) -> int:
        request = self.request
        self._chunker = Chunker(None if request.batch == "auto" else int(request.batch))
        if request.results is not None:
            code = self._finish_earlier(request.results)
            if code is not None:
                return code
        earlier = self._read_earlier()
        if request.files.send and request.inputs.is_repeatable:
            self._check_files()
        rows = request.inputs.rows()
        # Of a slow source no more than the first row is waited for.
        peeked = list(itertools.islice(rows, PEEKED_ROWS if request.inputs.is_repeatable else 1))
        if peeked:
            _say_unknown_names(request, peeked[0])
        if request.results is not None and request.results.files_dir is not None:
            check_fetch_names(peeked, request.files)
        lines = make_lines(
            itertools.chain(peeked, rows), self.maker, self.tally, earlier=earlier, retry_failed=request.retry_failed
        )
        if earlier is not None and request.inputs.is_repeatable:
            self._say_tally(earlier)
        first = next(lines, None)
        if first is None:
            return self._nothing_to_do()
        return self._submit(peeked, itertools.chain([first], lines))

    def explain(self) -> int:
        """Show which nodes could run the job, and why the others cannot."""
        from p2pcompute.cli.explain import print_explanation

        connection = self._connect()
        document = self._ask_explanation(connection, connection.request("GET", "/v1/status"))
        return print_explanation(document, as_json=self.request.is_json)

    def _ask_explanation(self, connection: Any, status: Mapping[str, Any], query: str = "") -> dict[str, Any]:
        body = self._job_body(status)
        body["spec"] = {name: body["spec"][name] for name in NEEDS if name in body["spec"]}
        answer: dict[str, Any] = connection.request(
            "POST", f"/v1/explanation{query}", body | {"results": None, "note": {}}
        )
        return answer

    def _check_can_run(self, connection: Any, status: Mapping[str, Any]) -> None:
        """A job that asks for something must be possible somewhere.

        Raises:
            NoEligibleNode: every node that is known will never run it.
            UsageError: it asks for an attribute that no node has, with a name like one that there is.
        """
        request = self.request
        is_special = request.kind in ("wasm", "container") or request.has_network or request.sandbox == "process"
        if request.needs is None and self.lock is None and not (request.on or request.not_on or is_special):
            return
        from p2pcompute.cli.explain import never_error, unheard_lines

        document = self._ask_explanation(connection, status, "?check=1")
        if document["can_never_run"]:
            raise never_error(document)
        for line in unheard_lines(document):
            say(line, level=1)

    def _finish_earlier(self, target: ResultsTarget) -> int | None:
        """Let an unfinished job of an earlier run that writes there end first; an exit code when the user stopped it.

        Raises:
            UsageError: a job of another installation writes there, or one that cannot be carried on from here.
        """
        from p2pcompute.api.result_claims import check_claims
        from p2pcompute.places import find_paths

        for job_id in sorted(check_claims(target.claims(), str(find_paths(os.environ).state))):
            connection = self._connect()
            try:
                job = connection.request("GET", f"/v1/jobs/{job_id}")
            except P2pcError as error:
                if error.code != "no-job":
                    raise
                continue
            if job["state"] not in ("waiting", "running"):
                continue
            is_fed = job.get("total") is None and connection.embedded is None
            if not self.request.resume or self.request.is_detached or is_fed:
                alias = job["alias"]
                raise UsageError(
                    f"the unfinished job {alias} writes there",
                    "two jobs would mix their results",
                    f"p2pc attach {alias} to see it, or p2pc cancel {alias}; then again",
                    code="results-busy",
                )
            if (code := self._carry_on(connection, job)) is not None:
                return code
        return None

    def _carry_on(self, connection: Any, job: Mapping[str, Any]) -> int | None:
        """Follow a job of an earlier run to its end; None when it came."""
        from p2pcompute.cli.follow import Signals, View, make_printer
        from p2pcompute.cli.progress import Progress, choose_display

        done = f"{job['done']}/{job['added']}"
        say(f"job {job['alias']} of an earlier run still writes there, {done} done: carrying on with it", level=1)
        if job.get("total") is None:
            # Who sent its tasks has gone with the node: it gets no more.
            connection.request("POST", f"/v1/jobs/{job['id']}/seal", {})
        display = choose_display(self.request.progress)
        printer, errors = make_printer(
            connection,
            job,
            display,
            mode=self.request.output,
            kind=str(job.get("kind")),
            tag=self.request.tag,
            keep_order=self.request.keep_order,
        )
        progress = Progress(f"{job['name']} {job['alias']}", data=job, started=self.started)
        with Signals().caught() as signals:
            outcome = View(
                connection,
                str(job["id"]),
                str(job["alias"]),
                printer,
                display,
                progress,
                signals,
                errors=errors,
                after=int(job.get("last_seq") or 0),
                keeps_results=True,
                is_onlooker=connection.embedded is None,
            ).follow()
        if errors is not None and outcome.exit_code is None:
            errors.close()
        if outcome.exit_code is not None:
            return outcome.exit_code
        return None

    def _connect(self) -> Any:
        """Return the connection to the node; start one at the first call when there is none."""
        if self._connection is None:
            from p2pcompute.cli.connection import open_connection
            from p2pcompute.cli.daemon_start import ensure_node

            self._is_new = not open_connection().is_answering()
            self._connection = ensure_node(local=self.request.local, announce=lambda text: say(text, level=1))
            if self._connection.embedded is not None:
                _say_awake(self._connection.request("GET", "/v1/status"))
        return self._connection

    def _read_earlier(self) -> DoneKeys | None:
        target = self.request.results
        if not self.request.resume or target is None:
            return None
        for path in (target.dir, target.file, target.joblog):
            if path is not None:
                return read_done_keys(path)
        return None

    def _say_tally(self, earlier: DoneKeys) -> None:
        """Say what is done before anything is run; inputs from a pipe are not known before the end."""
        tally = Tally()
        for _ in make_lines(
            self.request.inputs.rows(), self.maker, tally, earlier=earlier, retry_failed=self.request.retry_failed
        ):
            pass
        say(tally.text(), level=1)
        self._is_tallied = True

    def _check_files(self) -> None:
        """Every file to send is there, before anything starts."""
        from p2pcompute.cli.replacement import expand_list

        for seq, row in enumerate(self.request.inputs.rows(), start=1):
            for pattern in self.request.files.send:
                for path in expand_list(pattern, row, seq):
                    check_readable(path, "file to send") if not os.path.isdir(path) else file_line(path, "--send")

    def _nothing_to_do(self) -> int:
        """No input, or all of them done before."""
        tally = self.tally
        if self.request.resume:
            if not self._is_tallied:
                say(tally.text(), level=1)
            _say_kept(tally)
        job = {"total": tally.seen, "done": tally.done_before, "failed": tally.failed_kept, "by_node": []}
        code = 1 if tally.failed_kept else 0
        if self.request.is_json:
            print_json({"schema": "p2pc.job/1", **job, "state": "failed" if code else "done", "exit_code": code})
        elif not tally.seen:
            say("no inputs: there is nothing to run")
        elif not self.request.is_detached:
            from p2pcompute.cli.progress import summary_text

            say(summary_text(job, time.monotonic() - self.started))
        return min(tally.failed_kept, 101) if self.request.exit_style == "gnu" else code

    # --- with a node ------------------------------------------------------------------------------

    def _submit(self, peeked: list[Row], lines: Iterator[dict[str, Any]]) -> int:
        from p2pcompute.cli.follow import Signals, Submission

        request = self.request
        if request.is_detached:
            _check_detachable()
        connection = self._connect()
        status = connection.request("GET", "/v1/status")
        others = [peer for peer in status.get("peers") or () if peer.get("state") == "up"]
        if request.kind in ("wasm", "container"):
            check_module_files(peeked, request.files)
        elif others and not request.local:
            check_local_files(peeked, request.inputs.count, request.files, " ".join(request.words))
        elif not others and request.kind == "command":
            check_executable(request.words, request.files, only_here=True)
        self._check_can_run(connection, status)
        if self._is_new:
            _say_alone(status)
        if not request.local:
            _say_varying(request, others)
        if request.batch != "1":
            lines = self._chunker.chunks(lines, self._wait)
        body = self._job_body(status)
        if request.is_detached:
            answer = Submission(connection, body).answer()
            assert answer is not None
            return self._detach(connection, *self._begin(connection, answer, lines))
        with Signals().caught() as signals:  # from the moment that there is a job, they are about the job
            answer = Submission(connection, body).answer(signals)
            if answer is None:
                say("the node has not answered; should it have taken the job, p2pc jobs shows it")
                return EXIT_TERMINATED if signals.is_terminated else EXIT_INTERRUPTED
            return self._follow(connection, status, *self._begin(connection, answer, lines), signals)

    def _begin(
        self, connection: Any, answer: Mapping[str, Any], lines: Iterator[dict[str, Any]]
    ) -> tuple[Any, Mapping[str, Any]]:
        """Start to send the tasks of a job; return what sends them, and the job's id and alias.

        Args:
            answer: of its submission.
        """
        from p2pcompute.cli.follow import Source, batches_of

        job = {"id": answer["id"], "alias": answer["alias"]}
        batches = batches_of(
            lines, count_max=UPLOAD_LINES, bytes_max=UPLOAD_BYTES, is_stopped=lambda: self._is_stopping
        )
        source = Source(connection, job["id"], batches)
        source.start()
        return source, job

    def _wait(self, condition: Callable[[], bool], limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _job_body(self, status: Mapping[str, Any]) -> dict[str, Any]:
        request, function = self.request, self.function
        spec: dict[str, Any] = {
            "env": request.env,
            "share": [file_line(path, "--share") for path in request.files.share],
        }
        if (needs := request.needs) is not None:
            spec |= {"cpus": needs.cpus, "mem_bytes": needs.mem_bytes}
            spec |= {"gpus": needs.gpus, "disk_bytes": needs.disk_bytes}
        if self.lock is not None:
            spec["packages_b64"] = base64.b64encode(self.lock.text).decode()
            spec |= {"platforms": list(self.lock.platforms), "is_built": bool(self.lock.built)}
        if request.kind == "container":
            name = request.words[0]
            spec |= {"image_path": os.path.abspath(name)} if os.path.isfile(name) else {"image": name}
        if request.sandbox:
            spec["sandbox"] = request.sandbox
        if request.has_network:
            spec["network"] = True
        if request.fuel is not None:
            spec["fuel"] = request.fuel
        if function is not None:
            spec["code_b64"] = base64.b64encode(function.code).decode()
            if function.modules is not None:
                spec["modules_b64"] = base64.b64encode(function.modules).decode()
        terms: dict[str, Any] = {
            "retries": request.retries,
            "timeout_s": request.timeout_s,
            "slots_max": _slots(request.slots, status),
            "halt": "" if request.halt == "never" else request.halt,
            "priority": request.priority,
            "deadline_ms": request.deadline_ms,
            "local_only": request.local,
            "on": request.on,
            "not_on": request.not_on,
            **request.demands,
        }
        if needs is not None:
            terms |= {"require": list(needs.require), "prefer": list(needs.prefer)}
        return {
            "name": request.name,
            "kind": request.kind,
            "terms": terms,
            "spec": spec,
            "results": request.results.to_json() if request.results is not None else None,
            "note": {
                "keep_order": request.keep_order,
                "tag": request.tag,
                "output": request.output,
                "exit_style": request.exit_style,
                "words": request.words[:8],
            },
        }

    def _detach(self, connection: Any, source: Any, job: Mapping[str, Any]) -> int:
        from p2pcompute.cli.job_views import kept_text

        try:
            source.join()
        except KeyboardInterrupt:
            self._is_stopping = True
            source.stop()
            connection.request("POST", f"/v1/jobs/{job['id']}/cancel", {"now": True})
            raise
        if source.error is not None:
            connection.request("POST", f"/v1/jobs/{job['id']}/cancel", {"now": True})
            raise source.error
        if self.request.resume and not self._is_tallied:
            say(self.tally.text(), level=1)
        if self.request.is_json:
            print_json(connection.request("GET", f"/v1/jobs/{job['id']}"))
        else:
            print(job["alias"])
            kept = connection.request("GET", f"/v1/jobs/{job['id']}")
            say(f"kept by {kept_text(kept)}", level=1)
        return 0

    def _follow(
        self, connection: Any, status: Mapping[str, Any], source: Any, job: Mapping[str, Any], signals: Any
    ) -> int:
        from p2pcompute.cli.follow import View, make_printer
        from p2pcompute.cli.printing import Contents, Failures
        from p2pcompute.cli.progress import Progress, choose_display

        request = self.request
        this = status.get("node") or {}
        hint = request.inputs.count if request.batch == "1" and not request.resume else None
        title = f"{request.name} {job['alias']}"
        progress = Progress(title, str(this.get("short_id") or ""), hint, started=self.started)
        display = choose_display(request.progress)
        printer, errors = make_printer(
            connection,
            job,
            display,
            mode=request.output,
            kind=request.kind,
            keep_order=request.keep_order,
            tag=request.tag,
        )
        if request.is_live:
            from p2pcompute.cli.live_output import LiveOutput

            everything, streams = Reference(str(job["alias"])), ("stdout", "stderr")
            place = (connection, str(job["id"]), everything, streams)
            printer.live = LiveOutput(*place, printer.put_live, printer.tag_line)
            printer.live.start()
        self._failures = failures = Failures(
            Contents(connection, str(job["id"])),
            is_stderr_shown=request.output == "text",
            is_error_shown=errors is not None,
        )

        def took(task: Mapping[str, Any]) -> None:
            self._chunker.took(task)
            failures.take(task)

        view = View(
            connection,
            str(job["id"]),
            str(job["alias"]),
            printer,
            display,
            progress,
            signals,
            errors=errors,
            source=source,
            keeps_results=request.results is not None,
            on_task=took,
        )
        outcome = view.follow()
        self._is_stopping = True
        if errors is not None and outcome.exit_code != 129:
            errors.close()
        return self._finish(outcome.job, outcome.exit_code)

    def _finish(self, job: Mapping[str, Any] | None, signal_code: int | None) -> int:
        from p2pcompute.cli.follow import disputes_hint, failures_hint, job_exit_code, report_results, where_results
        from p2pcompute.cli.progress import summary_text

        if job is None:
            return signal_code or 0
        request, tally = self.request, self.tally
        elapsed_s = time.monotonic() - self.started
        code = job_exit_code(job, failed_before=tally.failed_kept, style=request.exit_style)
        if request.resume and not self._is_tallied:
            say(tally.text(), level=1)
        if hint := failures_hint(job):
            for line in self._failures.lines():
                say(line, level=1)
            say(hint, level=1)
        _say_kept(tally)
        if hint := disputes_hint(job):
            say(hint, level=1)
        before = {"done_before": tally.done_before, "failed_before": tally.failed_kept}
        say(summary_text(job, elapsed_s, **before, where=where_results(job)))
        if not report_results(job) and code == 0:
            code = 1
        if signal_code is not None:
            code = signal_code
        if request.plot is not None:
            from p2pcompute.cli.command import Reference
            from p2pcompute.cli.plot_command import plot_job

            plot_job(self._connect(), job, Reference(str(job["id"])), request.plot, "report")
            say(f"drawn: {request.plot}", level=1)
        if request.is_json:
            print_json({**job, "exit_code": code, "elapsed_s": round(elapsed_s, 3), **before})
        return code


def _say_kept(tally: Tally) -> None:
    """Failures of an earlier run make this one's exit code 1: say so, and what to do about them."""
    if tally.failed_kept:
        say(f"{count_text(tally.failed_kept)} failed before and not tried now; again: --resume-failed", level=1)


def _say_varying(request: Request, others: Sequence[Mapping[str, Any]]) -> None:
    """Say that the output of a command seems to depend on the node or the time, where results are compared."""
    varying = what_varies(request.words) if request.kind in ("command", "shell") else ""
    terms = request.demands
    is_compared = terms.get("trust") != "trusted" and terms.get("verify") != "none" and terms.get("replicas") != 1
    if varying and is_compared and any(peer.get("trust") == "member" for peer in others):
        say(f"note: {varying} gives something else on each node or each time; results of members are compared, and an")
        say("honest one that differs looks like a lie: --verify none believes them, --trust trusted leaves them out")


def _say_awake(status: Mapping[str, Any]) -> None:
    """What earlier runs left unfinished goes on while a node runs: say so."""
    jobs = status.get("jobs") or {}
    count = int(jobs.get("running") or 0) + int(jobs.get("waiting") or 0)
    if count:
        go = "goes" if count == 1 else "go"
        say(f"{plural(count, 'unfinished job')} of earlier runs {go} on meanwhile: p2pc jobs", level=1)


def _say_alone(status: Mapping[str, Any]) -> None:
    """A node that was just started and is alone: say how to change that, once."""
    if (status.get("group") or {}).get("is_alone"):
        slots = plural(int((status.get("slots") or {}).get("total") or 1), "slot")
        name = (status.get("node") or {}).get("name")
        say(f"running on {name} only ({slots}); add a computer: p2pc invite", level=1)


def _slots(text: str | None, status: Mapping[str, Any]) -> int | None:
    """Return the bound that -j sets; None = no bound."""
    if text is None or text in ("0", "0%"):
        return None
    if not text.endswith("%"):
        return int(text)
    total = int((status.get("slots") or {}).get("total") or 1)
    total += sum(int(peer.get("slots") or 0) for peer in status.get("peers") or () if peer.get("state") == "up")
    return max(1, total * int(text[:-1]) // 100)


def _check_detachable() -> None:
    """A node that ends with this command cannot keep a job.

    Raises:
        UsageError: no node runs, and here none may stay behind.
    """
    from p2pcompute.cli.connection import open_connection
    from p2pcompute.cli.daemon_start import why_embedded

    reason = why_embedded(os.environ)
    if reason is not None and not open_connection().is_answering():
        raise UsageError(
            "nothing would carry on with the job",
            f"no node is running, and here ({reason}) none is left behind",
            "p2pc node start, then again",
            code="detach",
        )
