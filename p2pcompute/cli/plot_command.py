"""`p2pc plot`: pictures of a job, also while it runs; and `--plot FILE` of other commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import click

from p2pcompute.cli.command import Command, Reference, json_option
from p2pcompute.cli.connection import Connection
from p2pcompute.cli.job_views import find_job, find_tasks, reference_argument
from p2pcompute.cli.kept_connection import open_kept
from p2pcompute.cli.output import one_line, print_json, say
from p2pcompute.plots.drawing import KINDS, Kind, write_picture
from p2pcompute.plots.records import job_records
from p2pcompute.plots.timelines import Timeline, summary, timeline


@click.command(
    cls=Command,
    examples=[
        ("p2pc plot", "the newest job: a page with everything"),
        ("p2pc plot j7k3 --kind gantt -o j7k3.svg", "which slot did what when"),
        ("p2pc plot j7k3 --kind arrival -o j7k3.csv", "the numbers"),
        ("p2pc plot j7k3 -o j7k3.json", "for chrome://tracing or Perfetto"),
    ],
)
@json_option
@click.option("-o", "--out", metavar="FILE", help="Its suffix decides: .html .svg .png .csv .json  [default: JOB.html]")
@click.option("--kind", type=click.Choice(KINDS), default="report", help="What is drawn; report is all.")
@click.option("--open", "open_", is_flag=True, help="Show it in the browser.")
@reference_argument
def plot(*, json_: bool, out: str | None, kind: str, open_: bool, ref: Reference) -> int:
    """When a job's tasks ran where, and when results arrived."""
    connection = open_kept()
    job = find_job(connection, ref)
    path = Path(out or f"{job['alias']}.html")
    line = plot_job(connection, job, ref, path, cast("Kind", kind))
    if json_:
        print_json({"schema": "p2pc.plot/1", "file": str(path), "kind": kind, "summary": summary(line)})
    else:
        for sentence in summary(line):
            say(sentence)
        print(path)
    if open_:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
    return 0


def plot_job(connection: Connection, job: Mapping[str, Any], ref: Reference, path: Path, kind: Kind) -> Timeline:
    """Draw a job into a file.

    Raises:
        UsageError: see `write_picture`.
    """
    records = job_records(job, find_tasks(connection, job["id"], ref))
    line = timeline(records, f"{job['alias']}  {one_line(str(job['name']))}")
    write_picture(line, kind, path)
    return line
