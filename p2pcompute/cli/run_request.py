"""What `p2pc run` was asked for: its flags and words, read and checked.  Nothing is started here."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from p2pcompute.api.result_target import ResultsTarget, is_results_file
from p2pcompute.cli.command import check_text
from p2pcompute.cli.inputs import BLOCK_BYTES_MAX, Inputs, Reading
from p2pcompute.cli.output import (
    one_line,
    say,
)
from p2pcompute.cli.plan import (
    Files,
    check_executable,
    check_readable,
    file_line,
    read_target,
)
from p2pcompute.cli.replacement import parse as parse_replacement
from p2pcompute.errors import UsageError

if TYPE_CHECKING:
    from p2pcompute.resources.matching import Needs


SUBMIT_VARIABLES: Final = ("P2PC_SUBMIT_DIR", "P2PC_SUBMIT_HOST")
"""On this machine tasks without files of their own run in the directory where `run` was called, as under a shell."""
JOB_NAME_CHARS: Final = 40
MEM_BYTES_MIN: Final = 2**20
"""Who says less has left out the unit."""
COUNT_DIGITS_MAX: Final = 6
COUNT_MAX: Final = 10**COUNT_DIGITS_MAX - 1
"""Largest -j, -n and --batch."""


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


def block_bytes_of(flags: Mapping[str, Any]) -> int:
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


def reading_of(flags: Mapping[str, Any]) -> Reading:
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


def read_request(flags: Mapping[str, Any], command: list[str], inputs: Inputs) -> Request:
    from p2pcompute.config import find_project_file, load_settings, parse_duration
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
        check_flags_first(command)
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
        needs=needs_of(flags, _mem_bytes(settings.mem)),
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


def _mem_bytes(text: str) -> int | None:
    """Return the memory of a task; None: no limit.

    Raises:
        UsageError: it is so little that the unit must be missing.
    """
    from p2pcompute.config import parse_size

    size = parse_size(text) if text else None
    if size is not None and size < MEM_BYTES_MIN:
        raise UsageError(
            f"--mem is only {size} bytes", "no program runs in that", "say the unit, like --mem 500M or --mem 2G"
        )
    return size


def needs_of(flags: Mapping[str, Any], mem_bytes: int | None) -> Needs | None:
    """Return what a task asks of a node.

    Raises:
        UsageError: no node could ever answer that; it points at the column.
    """
    from p2pcompute.config import parse_size

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


def check_flags_first(words: Sequence[str]) -> None:
    """Refuse flags of `run` among the words of a command that takes no words.

    Raises:
        UsageError: there are some; the fix has them at their place.
    """
    options = [param for param in click.get_current_context().command.params if isinstance(param, click.Option)]
    known = {name: param for param in options for name in param.opts}
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
        flag = "--resume-failed" if flags["resume_failed"] else "--resume"
        raise UsageError(
            f"{flag} needs to know what was done", "neither --results nor --joblog is given", f"--results out {flag}"
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
