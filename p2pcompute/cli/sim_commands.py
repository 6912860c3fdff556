"""p2pc sim: run scenarios of the simulator and sum them up.  Needs no node and no network."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click

from p2pcompute.cli import sim_settings
from p2pcompute.cli.command import CONTEXT, Command, CommandGroup, json_option
from p2pcompute.cli.completing import complete_scenarios
from p2pcompute.cli.output import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    count_text,
    duration_text,
    one_line,
    options,
    plural,
    print_json,
    say,
    style,
    table,
)
from p2pcompute.cli.sim_figures import print_summary
from p2pcompute.cli.sim_watching import EVENT_COLUMNS_MAX, Onlooker, Progress, Stop, event_sink
from p2pcompute.errors import UsageError
from p2pcompute.version import VERSION

if TYPE_CHECKING:
    from p2pcompute.simulation.archive import Archive
    from p2pcompute.simulation.result import RunResult, Watch
    from p2pcompute.simulation.scenario import Scenario
    from p2pcompute.simulation.shrink import Shrunk
    from p2pcompute.simulation.study import Point, Study

SEEDS_MAX: Final = 1_000_000
PROBLEMS_SHOWN_MAX: Final = 5
FAILED_SHOWN_MAX: Final = 10
STORY_LINES_MAX: Final = 8
SHRUNK_S_MAX: Final = 60.0
"""Wall time of a run that is still worth being made smaller by running it again and again."""
TRACES_MAX: Final = 100
"""Runs of a study whose traces are kept with -o."""


@click.group(cls=CommandGroup, context_settings=CONTEXT)
def sim() -> None:
    """Simulate a mesh on this machine: whole nodes, the code that runs everywhere, in virtual time.

    No network, no node, nothing is left behind.

    \b
    p2pc sim list                        the scenarios, and the question that each answers
    p2pc sim run smoke                   the first look
    p2pc sim run smoke --sweep nodes=10,20,40 --seeds 5 -o out
    p2pc sim show smoke                  what a scenario says
    p2pc sim keys                        what can be set
    """


@sim.command(
    name="list",
    cls=Command,
    examples=[("p2pc sim list", "names and questions"), ("p2pc sim list --json", "for scripts")],
)
@json_option
def list_command(json_: bool) -> int:
    """List the scenarios that come along, and the question that each answers."""
    from p2pcompute.simulation.scenario import list_scenarios

    found = list_scenarios()
    if json_:
        items = [{"name": name, "question": question} for name, question in found.items()]
        print_json({"schema": "p2pc.sim-scenarios/1", "items": items})
    else:
        print(table(["SCENARIO", "QUESTION"], list(found.items()), indent=0))
        say("look at one: p2pc sim show smoke; run it: p2pc sim run smoke", level=1)
    return 0


sim.add_command(sim_settings.show)
sim.add_command(sim_settings.keys)


@sim.command(
    name="run",
    cls=Command,
    examples=[
        ("p2pc sim run smoke", "the first look"),
        ("p2pc sim run smoke --seeds 20 --jobs 4", "20 seeds on 4 cores, with 95 % intervals"),
        ("p2pc sim run smoke --set network.loss=0.05 --events", "what happens, as it happens"),
        ("p2pc sim run smoke --sweep nodes=10,20,40 --seeds 5 -o out", "results, CSV and plots in out/"),
        ("p2pc sim run ./mine.toml", "a scenario of your own"),
    ],
    sections={
        "What": ["nodes", "hours", "seed", "seeds", "set_", "sweep", "trace"],
        "Where": ["jobs", "on"],
        "Looking inside": ["events", "node", "until", "is_shrinking"],
        "Output": ["json_", "out", "plot"],
    },
)
@click.argument("scenario", shell_complete=complete_scenarios)
@click.option("--nodes", type=click.IntRange(1), metavar="N", help="Number of nodes.")
@click.option("--hours", type=click.FloatRange(0, min_open=True), metavar="H", help="Simulated time.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="S", help="The first seed.")
@click.option("--seeds", type=click.IntRange(1, SEEDS_MAX), default=1, metavar="N", help="So many, from --seed on.")
@click.option(
    "--set", "set_", multiple=True, metavar="KEY=VALUE", help="Change a setting of p2pc sim keys (repeatable)."
)
@click.option("--sweep", multiple=True, metavar="KEY=A,B,C", help="Try these values; several sweeps: all combinations.")
@click.option("--trace", metavar="FILE", help="Replay when nodes were up, from an AVT file.")
@click.option("--jobs", type=click.IntRange(1, 1024), metavar="N", help="Processes here.  [default: one a core]")
@click.option(
    "--on",
    type=click.Choice(["local", "mesh"]),
    default="local",
    help="Where it runs: here, or all over the group, which writes no traces.",
)
@click.option("--events", is_flag=True, help="Print what happens; with --json as p2pc.trace/1 lines.")
@click.option("--node", metavar="NODE", help="Only this node in --events.")
@click.option("--until", type=click.FloatRange(0, min_open=True), metavar="SECS", help="Stop there, to look inside.")
@click.option("--shrink/--no-shrink", "is_shrinking", default=True, help="Make a seed that failed smaller.")
@json_option
@click.option("-o", "--out", metavar="DIR", help="Keep results there; what is there already is not run again.")
@click.option("--plot/--no-plot", default=None, help="Draw plots into -o DIR.  [default: yes]")
def run_command(
    *,
    scenario: str,
    nodes: int | None,
    hours: float | None,
    seed: int,
    seeds: int,
    set_: tuple[str, ...],
    sweep: tuple[str, ...],
    trace: str | None,
    jobs: int | None,
    on: str,
    events: bool,
    node: str | None,
    until: float | None,
    is_shrinking: bool,
    json_: bool,
    out: str | None,
    plot: bool | None,
) -> int:
    """Run a scenario: a name of p2pc sim list, or a file.

    Exit code 1 when a seed failed: then its problems, and the command that replays it.
    """
    from p2pcompute.simulation.archive import Archive, alone_in
    from p2pcompute.simulation.scenario import EXPERIMENTS, load_scenario, split_values
    from p2pcompute.simulation.study import plan_study
    from p2pcompute.simulation.summary import TRACE_VALUES, summary

    loaded = load_scenario(scenario)
    said: dict[str, str] = {}
    changes: dict[str, str] = {}
    if trace is not None:
        if not hasattr(loaded.settings, "population"):
            why = f"experiment {loaded.experiment} has no population that comes and goes"
            raise UsageError(f"--trace says nothing to {scenario}", why, "leave it out")
        _once(said, "population.trace", f"--trace {trace}")
        changes = {**TRACE_VALUES, "population.trace": os.path.abspath(trace)}
    for key, text in (_pair(text, "--set") for text in set_):
        _once(said, loaded.keys.get(key, key), f"--set {key}={text}")
        changes[key] = text
    for name, number in (("nodes", nodes), ("hours", hours)):
        if number is not None:
            changes[name] = f"{number:g}" if isinstance(number, float) else str(number)
            _once(said, name, f"--{name} {changes[name]}")
    swept: dict[str, list[str]] = {}
    for key, text in (_pair(text, "--sweep") for text in sweep):
        _once(said, loaded.keys.get(key, key), f"--sweep {key}={text}")
        if not (values := split_values(text)):
            raise UsageError(f"--sweep {key}= has no values", "", f"name some: --sweep {key}=A,B,C")
        if twice := [value for number, value in enumerate(values) if value in values[:number]]:
            raise UsageError(f"--sweep {key}={text} names {twice[0]} twice", "each is one point", "name it once")
        swept[key] = values
    words = {key: text for key, text in said.items() if not text.startswith("--set ")}
    if trace is not None:
        words |= {key: f"--trace {trace}" for key in TRACE_VALUES if changes[key] == TRACE_VALUES[key]}
    study = plan_study(loaded, range(seed, seed + seeds), swept, changes, words=words)
    if until is not None and not math.isfinite(until):
        raise UsageError(
            f"--until cannot be {until}", "it is a finite number of seconds", "leave it out to see the end"
        )
    about = EXPERIMENTS[loaded.experiment]
    if until is not None and not about.has_moments:
        why = f"a run of experiment {loaded.experiment} goes on to its end"
        raise UsageError(f"--until says nothing to {scenario}", why, "leave it out; smaller runs: p2pc sim keys")
    if events and not about.has_events:
        why = f"a run of experiment {loaded.experiment} tells of none"
        raise UsageError(f"--events shows nothing of {scenario}", why, "leave it out; its figures: --json")
    study.until_s = until
    if out == "":
        raise UsageError("-o names no directory", "it is empty text", "name one: -o DIR")
    if plot and out is None:
        raise UsageError("--plot goes with -o DIR", "plots are written there", "add -o DIR")
    if node is not None and not events:
        raise UsageError("--node goes with --events", "it says whose events are printed", "add --events")
    if node is not None:
        node = _node_name(node, int(getattr(study.points[0].scenario.settings, "nodes", 0)))
    if events and (seeds > 1 or len(study.points) > 1 or on == "mesh"):
        raise UsageError("--events shows one run", "this is several, or runs elsewhere", "name one seed and no --sweep")
    if on == "mesh" and jobs is not None:
        why = "the nodes of the group take as many runs as they have room for"
        raise UsageError("--jobs says nothing to --on mesh", why, "leave it out")
    if on == "mesh" and (files := study.points[0].scenario.files()):
        raise UsageError(
            f"the scenario reads {files[0]}", "other nodes do not have that file", "run it here: --on local"
        )
    archive = None
    if out is not None:
        click.get_current_context().with_resource(alone_in(Path(out)))
        archive = Archive(Path(out))
        archive.check(study)

    with Stop() as stop:
        try:
            _run(study, archive, stop, jobs=jobs, on=on, events=events, node=node)
        except KeyboardInterrupt:  # before the first run, or behind the last one
            study.is_interrupted = study.is_interrupted or study.done_count < seeds * len(study.points)
        document = summary(study)
        shrunk = None
        failed = study.failed()
        if failed and is_shrinking and stop.by is None:
            shrunk = _shrink(study, *failed[0], stop)
    _add_commands(document, study, changes, shrunk)
    written: list[str] = []
    try:
        if archive is not None and study.done_count:  # who reads this may go away, and then printing it ends us
            written = _write(archive, study, document)
    finally:
        if json_ and not events:
            print_json(document)
        elif study.done_count:
            print_summary(document, study, sys.stderr if events else sys.stdout)
        _tell_failures(study, changes, shrunk)
    if archive is not None and written:
        if plot is not False:
            written += _draw(archive, study, document)
        say(f"results in {archive.folder}: {', '.join(written)}", level=1)
    if study.is_interrupted:
        missing = seeds * len(study.points) - study.done_count
        more = f"; the same command goes on from there ({out})" if out else ""
        say(f"stopped: {plural(missing, 'run')} not done{more}")
        return EXIT_TERMINATED if stop.by == signal.SIGTERM else EXIT_INTERRUPTED
    return 1 if failed else 0


def _once(said: dict[str, str], key: str, words: str) -> None:
    """Note that a setting, by its long name, is given by these words.

    Raises:
        UsageError: others have given it already.
    """
    if key in said:
        fix = "leave one of them out; to try several values: --sweep KEY=A,B,C"
        raise UsageError(f"{key} is given twice", f"by {said[key]} and by {words}", fix)
    said[key] = words


_FORMS: Final = {"--set": "KEY=VALUE", "--sweep": "KEY=A,B,C"}


def _pair(text: str, flag: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f'{flag} "{text}" cannot be understood', "", f"write it as {flag} {_FORMS[flag]}")
    return key.strip(), value.strip()


def _node_name(text: str, count: int) -> str:
    """Return the name of a node of a run by its name or number."""
    number = text.removeprefix("node-")
    if not number.isdecimal() or int(number) >= count:
        raise UsageError(f'there is no node "{text}"', "", f"name one from node-0 to node-{count - 1}, or its number")
    return f"node-{int(number)}"


# --- running --------------------------------------------------------------------------------------


def _run(
    study: Study, archive: Archive | None, stop: Stop, *, jobs: int | None, on: str, events: bool, node: str | None
) -> None:
    """Run what is missing.

    Raises:
        KeyboardInterrupt: it was stopped outside of the runs.
    """
    from p2pcompute.simulation.running import IN_FLIGHT_MAX, InProcess, make_meter, open_pool, run_study

    # Events are not kept, so they need a run.
    if archive is not None and not events and (found := archive.fill(study)):
        say(f"{plural(found, 'run')} of {count_text(len(study.seeds) * len(study.points))} already in {archive.folder}")
    missing = len(study.seeds) * len(study.points) - study.done_count
    if archive is not None and on == "local" and missing <= TRACES_MAX:
        study.traces = archive.folder
    elif archive is not None and missing:
        why = "runs elsewhere leave none" if on == "mesh" else f"at most {TRACES_MAX} runs leave one"
        say(f"no traces in {archive.folder}, and so no plot over time: {why}", level=1)
    jobs = jobs or min(_cores(), missing)
    progress = Progress(study, stop)

    def on_result(point: Point, result: RunResult) -> None:
        if archive is not None:
            with stop.held():  # what counts as done is kept, and the other way round
                archive.keep(study, point, result)
        progress.take(result)

    def on_stop() -> bool:
        if stop.by == signal.SIGTERM:
            return False
        stop.is_waiting = True
        progress.clear()
        say("stopping: the runs under way may end, nothing more is begun; Ctrl-C again ends now")
        return True

    in_flight = IN_FLIGHT_MAX
    open_executor: Any
    watch: Any = None
    if on == "mesh":
        from p2pcompute.api.executor import MeshExecutor
        from p2pcompute.api.options import TaskOptions

        # Another version may give other results, and who is not believed would seem to lie.
        options = TaskOptions(require=[f"node.version == '{VERSION}'"])
        open_executor = functools.partial(MeshExecutor, name="p2pc sim", options=options)
    elif events or min(jobs, missing) <= 1:
        watch = Onlooker(progress, event_sink(study) if events else None, node)
        open_executor = functools.partial(InProcess, watch)
    else:
        progress.meter = make_meter()
        open_executor = functools.partial(open_pool, min(jobs, missing), progress.meter)
        in_flight = 2 * jobs
        stop.is_polled = True
    try:
        run_study(
            study,
            open_executor,
            in_flight=in_flight,
            on_result=on_result,
            on_tick=progress.tick,
            on_stop=on_stop if on == "mesh" else None,
            is_elsewhere=on == "mesh",
        )
    finally:
        stop.is_polled = stop.is_waiting = False
        progress.close()
        if watch is not None:
            watch.close()


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


# --- failures -------------------------------------------------------------------------------------


def _shrink(study: Study, point: Point, failed: RunResult, stop: Stop) -> tuple[Point, Shrunk] | None:
    """Make the first failing run small."""
    from p2pcompute.simulation.running import run_one
    from p2pcompute.simulation.scenario import EXPERIMENTS
    from p2pcompute.simulation.shrink import WALL_S_MAX, shrink

    if any(problem.startswith("lost: ") for problem in failed.problems):
        return None
    if failed.wall_s > SHRUNK_S_MAX:
        say(f"seed {failed.seed} failed; a run of {duration_text(failed.wall_s)} is too long to be made smaller here")
        return None
    say(f"seed {failed.seed} failed; making it smaller (Ctrl-C or {duration_text(WALL_S_MAX)} end that) …", level=1)
    run = EXPERIMENTS[study.scenario.experiment].run
    first = Onlooker(None)

    def attempt(scenario: Scenario, onlooker: Onlooker | None = None) -> RunResult:
        stop.check()
        watch = cast("Watch", onlooker or Onlooker(None))  # no subclass of it: importing the simulation takes too long
        return run_one(run, scenario, failed.seed, study.until_s, watch=watch)

    try:
        again = attempt(point.scenario, first)
    except KeyboardInterrupt:
        return None
    if again.trace_hash != failed.trace_hash or not again.problems:
        say(f"seed {failed.seed} went another way when it was run again: the simulation is not deterministic")
        return None
    found = shrink(point.scenario, again, list(first.faults), attempt, on_step=_tell_step)
    return (point, found) if found.values else None


def _tell_step(best: Shrunk) -> None:
    values = " ".join(f"{key}={value}" for key, value in best.values.items())
    say(f"  {plural(best.runs, 'run')}: {one_line(values, EVENT_COLUMNS_MAX)}", level=1)


def _add_commands(
    document: dict[str, Any], study: Study, changes: Mapping[str, str], shrunk: tuple[Point, Shrunk] | None
) -> None:
    """Put the commands that replay failures into a summary."""
    from p2pcompute.simulation.summary import replay_command

    parts = document.get("points", [document])
    for part, point in zip(parts, study.points, strict=True):
        for entry in part["problems"]:
            seed = entry["seed"]
            values = {**changes, **point.values}
            entry["replay"] = replay_command(study.scenario, seed, values, study.until_s)
            if shrunk is not None and shrunk[0] is point and shrunk[1].result.seed == seed:
                values |= shrunk[1].values
                entry["shrunk"] = replay_command(study.scenario, seed, values, study.until_s)


def _tell_failures(study: Study, changes: Mapping[str, str], shrunk: tuple[Point, Shrunk] | None) -> None:
    from p2pcompute.simulation.summary import replay_command

    failed = study.failed()
    for point, result in failed[:FAILED_SHOWN_MAX]:
        values = {**changes, **point.values}
        say(style(f"seed {result.seed} failed: {plural(len(result.problems), 'problem')}", sys.stderr, fg="red"))
        for problem in result.problems[:PROBLEMS_SHOWN_MAX]:
            say("  " + _shortened(problem.strip().splitlines()).replace("\n", "\n  "))
        if len(result.problems) > PROBLEMS_SHOWN_MAX:
            say(f"  and {len(result.problems) - PROBLEMS_SHOWN_MAX} more")
        say(f"  replay:  {replay_command(study.scenario, result.seed, values, study.until_s)}")
        if shrunk is not None and shrunk[0] is point and shrunk[1].result.seed == result.seed:
            smaller = replay_command(study.scenario, result.seed, {**values, **shrunk[1].values}, study.until_s)
            say(f"  smaller: {smaller}")
    if len(failed) > FAILED_SHOWN_MAX:
        seeds = ", ".join(str(result.seed) for _, result in failed[FAILED_SHOWN_MAX:][:50])
        say(f"and {plural(len(failed) - FAILED_SHOWN_MAX, 'run')} more: seeds {seeds}")


def _shortened(lines: Sequence[str]) -> str:
    """A story: how it begins and how it ends, unless -v asks for all of it."""
    if len(lines) > STORY_LINES_MAX and not options().verbose:
        lines = [lines[0], "  … (-v shows all)", *lines[2 - STORY_LINES_MAX :]]
    return "\n".join(lines)


# --- keeping --------------------------------------------------------------------------------------


def _write(archive: Archive, study: Study, document: Mapping[str, Any]) -> list[str]:
    """Write the summary and the tables, and remove what is of another study; return the names of the files."""
    from p2pcompute.simulation.plots import clear, write_tables

    clear(archive)
    archive.write("summary.json", json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return ["summary.json", "runs.jsonl", *write_tables(archive, study, document)]


def _draw(archive: Archive, study: Study, document: Mapping[str, Any]) -> list[str]:
    """Draw the plots, if that can be; return the names of the files."""
    from p2pcompute.simulation.plots import draw

    try:
        return draw(archive.folder, study, document)
    except UsageError as error:  # no matplotlib
        say(f"no plots: {error.what}; {error.fix}")
        return []
