"""p2pc sim show, p2pc sim keys: what a scenario says, and what one can say."""

from __future__ import annotations

import itertools
from typing import Any

import click

from p2pcompute.cli.command import Command, json_option
from p2pcompute.cli.completing import complete_scenarios
from p2pcompute.cli.output import print_json, say


@click.command(
    name="show",
    cls=Command,
    examples=[("p2pc sim show churn-job", ""), ("p2pc sim show -q churn-job > mine.toml", "to start one of your own")],
)
@click.argument("scenario", shell_complete=complete_scenarios)
@json_option
def show(scenario: str, json_: bool) -> int:
    """Show a scenario: its file, with comments, and where that is."""
    from p2pcompute.simulation.scenario import load_scenario, scenario_path

    found = load_scenario(scenario)
    path = scenario_path(scenario)
    text = path.read_text(encoding="utf-8")
    if json_:
        facts = {"name": found.name, "question": found.question, "experiment": found.experiment}
        print_json(
            {"schema": "p2pc.sim-scenario/1", **facts, "file": str(path), "keys": dict(found.keys), "text": text}
        )
        return 0
    print(text, end="" if text.endswith("\n") else "\n")
    say(f"file: {path}", level=1)
    if found.keys:
        keys = ", ".join(f"{short} ({long})" for short, long in found.keys.items())
        say(f"short keys for --set and --sweep: {keys}", level=1)
    say("all keys: p2pc sim keys", level=1)
    return 0


@click.command(
    name="keys",
    cls=Command,
    examples=[
        ("p2pc sim keys", "all of them"),
        ("p2pc sim keys network", "those of [network] and [network.nat]"),
        ("p2pc sim keys nodes", "one"),
        ("p2pc sim keys --json", "for scripts"),
    ],
)
@click.argument("section", required=False)
@click.option("--experiment", default="mesh", show_default=True, metavar="NAME", help="Whose settings.")
@json_option
def keys(section: str | None, experiment: str, json_: bool) -> int:
    """List the settings of scenarios: key, what is allowed, default, meaning.

    They are the keys of a scenario's file, of --set KEY=VALUE and of --sweep KEY=A,B,C.
    """
    from p2pcompute.errors import UsageError
    from p2pcompute.simulation.reference import settings_in, settings_of
    from p2pcompute.simulation.scenario import EXPERIMENTS

    if experiment not in EXPERIMENTS:
        raise UsageError(f'there is no experiment "{experiment}"', "", f"name one of {', '.join(EXPERIMENTS)}")
    found = settings_of(experiment) if section is None else settings_in(experiment, section)
    if json_:
        items: list[dict[str, Any]] = [
            {name: getattr(one, name) for name in ("key", "section", "allowed", "default", "text")} for one in found
        ]
        print_json({"schema": "p2pc.sim-keys/1", "experiment": experiment, "items": items})
        return 0
    lists = {"workload": "[[workload]]", "population.classes": "[[population.classes]]"}
    for number, (name, group) in enumerate(itertools.groupby(found, key=lambda one: one.section)):
        if number:
            print()
        print(lists.get(name, f"[{name}]") if name else "top level")
        for one in group:
            print(f"  {one.key} = {one.default_text()}")
            print(f"      {one.text} ({one.allowed})")
    if any(one.section == "workload" for one in found):
        say("workload.0.tasks is that of the first [[workload]], workload.tasks that of all", level=1)
    return 0
