"""`p2pc demo`: pi on every node."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click

from p2pcompute.cli.command import Command, Reference, json_option
from p2pcompute.cli.job_views import PAGE, shares_table
from p2pcompute.cli.output import count_text, plural, print_json, say

DEMO_SAMPLES: Final = 100_000
"""About 40 ms of one core: 200 tasks take 5 s on two."""


@click.command(
    cls=Command,
    examples=[
        ("p2pc demo", ""),
        ("p2pc demo --tasks 2000", "more of it"),
        ("p2pc demo --plot pi.html", "with pictures"),
    ],
)
@json_option
@click.option("--tasks", type=click.IntRange(1, 1_000_000), default=200, show_default=True, help="Number of tasks.")
@click.option("--plot", metavar="FILE", help="Draw when tasks ran where, at the end: .html .svg .png .csv .json")
def demo(json_: bool, tasks: int, plot: str | None) -> int:
    """Estimate pi on every node and show who did what."""
    from p2pcompute.cli.daemon_start import ensure_node
    from p2pcompute.cli.follow import Signals, Source, View, batches_of, job_exit_code, make_printer
    from p2pcompute.cli.plan import dump_call
    from p2pcompute.cli.progress import Progress, choose_display, summary_text
    from p2pcompute.execution.functions import load_file_function, load_value, ship

    if plot is not None:
        from p2pcompute.plots.drawing import check_picture

        check_picture(Path(plot))
    started = time.monotonic()
    shipped = ship(load_file_function(Path(__file__).with_name("demo_pi.py"), "estimate"))
    connection = ensure_node(announce=lambda text: say(text, level=1))
    status = connection.request("GET", "/v1/status")
    job = connection.request(
        "POST",
        "/v1/jobs",
        {
            "name": "pi",
            "kind": "function",
            "terms": {},
            "spec": {"code_b64": base64.b64encode(shipped.code).decode()},
        },
    )

    def lines() -> Iterator[dict[str, Any]]:
        for seed in range(tasks):
            args = base64.b64encode(dump_call((seed, DEMO_SAMPLES))).decode()
            yield {"argv": ["demo_pi.py::estimate", str(seed)], "inputs": [str(seed)], "args_b64": args}

    hits: list[int] = []

    def take(task: Mapping[str, Any]) -> None:
        if task["state"] == "done" and isinstance(task.get("value_b64"), str):
            hits.append(load_value(base64.b64decode(task["value_b64"])))

    display = choose_display("auto")
    printer, errors = make_printer(connection, job, display, mode="none", kind="function")
    node = str((status.get("node") or {}).get("short_id") or "")
    source = Source(
        connection, job["id"], batches_of(lines(), count_max=PAGE, bytes_max=1 << 20, is_stopped=lambda: False)
    )
    source.start()
    with Signals().caught() as signals:
        view = View(
            connection,
            job["id"],
            job["alias"],
            printer,
            display,
            Progress(f"pi {job['alias']}", node, tasks),
            signals,
            errors=errors,
            source=source,
            on_task=take,
        )
        outcome = view.follow()
    if outcome.job is None:
        return outcome.exit_code or 0
    elapsed_s = time.monotonic() - started
    if plot is not None:
        from p2pcompute.cli.plot_command import plot_job

        plot_job(connection, outcome.job, Reference(str(job["id"])), Path(plot), "report")
    pi = 4 * sum(hits) / (len(hits) * DEMO_SAMPLES) if hits else None
    code = outcome.exit_code or job_exit_code(outcome.job)
    if json_:
        print_json(
            {
                "schema": "p2pc.demo/1",
                "pi": pi,
                "samples": len(hits) * DEMO_SAMPLES,
                "job": outcome.job["alias"],
                "tasks": tasks,
                "done": outcome.job["done"],
                "failed": outcome.job["failed"],
                "elapsed_s": round(elapsed_s, 3),
                "by_node": outcome.job["by_node"],
                "exit_code": code,
            }
        )
        return code
    if pi is not None:
        print(f"pi ≈ {pi:.5f}   ({count_text(len(hits) * DEMO_SAMPLES)} darts in {plural(tasks, 'task')})")
    print(shares_table(outcome.job, node))
    say(summary_text(outcome.job, elapsed_s))
    if plot is not None:
        say(f"drawn: {plot}", level=1)
    if (status.get("group") or {}).get("is_alone"):
        say("add a computer: p2pc invite, and run this again", level=1)
    return code
