"""What people read when a job does not run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from p2pcompute.cli.explain import _sentence, never_error, print_explanation, stalled_lines, unheard_lines
from p2pcompute.cli.follow import STALL_S, Doubt, Stall
from p2pcompute.cli.job_views import coordinator_text, doubt_lines
from p2pcompute.cli.main import exit_code_of


def node(name: str, verdict: str, *whats: str, **more: Any) -> dict[str, Any]:
    reasons = [{"code": "has", "verdict": verdict, "what": what, "fix": None, "passes_at": None} for what in whats]
    return {
        "name": name,
        "short_id": name.upper() * 4,
        "is_this": False,
        "verdict": verdict,
        "reasons": reasons,
        **more,
    }


def document(*nodes: dict[str, Any], **more: Any) -> dict[str, Any]:
    counts = {name: sum(one["verdict"] == name for one in nodes) for name in ("now", "later", "never", "unknown")}
    plain = {"job": None, "left_out": 0, "would_help": [], "not_the_cause": [], "unheard": [], "why_slow": [], **counts}
    return {**plain, "nodes": list(nodes), "can_never_run": counts["never"] == len(nodes), **more}


def test_table_of_reasons(capsys: Any) -> None:
    """The mock-up of the design, as far as reasons are known."""
    helps = [
        {"what": "--mem 5G", "effect": "nova could start it now"},
        {"what": "drop has=ffmpeg", "effect": "atlas could start it now (or install ffmpeg there)"},
    ]
    shown = document(
        node("nova", "later", "mem 8 GiB > 5.8 GiB free (of 15 GiB)", is_this=True),
        node("atlas", "never", "needs has=ffmpeg; not installed there"),
        node("pi4", "never", "needs arch=x86_64, is aarch64", "mem 8 GiB > 3.7 GiB total"),
        node("desk-2", "unknown", "not seen for 12 s"),
        would_help=helps,
        not_the_cause=["network", "-j"],
    )
    assert print_explanation(shown, as_json=False) == 0
    assert capsys.readouterr().out == (
        "0 of 4 nodes can take it now, 1 can later.\n"
        "\n"
        "  NODE         VERDICT  BECAUSE\n"
        "  nova (this)  later    mem 8 GiB > 5.8 GiB free (of 15 GiB)\n"
        "  atlas        never    needs has=ffmpeg; not installed there\n"
        "  pi4          never    needs arch=x86_64, is aarch64 · mem 8 GiB > 3.7 GiB total\n"
        "  desk-2       unknown  not seen for 12 s\n"
        "\n"
        "What would help\n"
        "  --mem 5G          nova could start it now\n"
        "  drop has=ffmpeg   atlas could start it now (or install ffmpeg there)\n"
        "Not the cause: network, -j.\n"
    )


def test_who_is_away_and_may_fit_is_named(capsys: Any) -> None:
    """ "0 of 2 nodes" hides the one thing to do: switch the other one on."""
    away = node("pc-d", "unknown", "not seen for 40 s")
    away["reasons"][0]["code"] = "not-seen"
    never = node("nova", "never", "not among the chosen ones (--on)")
    assert print_explanation(document(never, away), as_json=False) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "0 of 2 nodes can take it now.  pc-d (not seen for 40 s) may fit."


def test_it_is_said_when_a_node_has_room_and_why_it_is_slow(capsys: Any) -> None:
    """ "Later" is no answer to somebody who decides whether to wait."""
    moment = datetime.now().astimezone().replace(microsecond=0) + timedelta(seconds=100)
    busy = {
        "code": "busy",
        "verdict": "later",
        "what": "all 8 slots busy",
        "fix": None,
        "passes_at": moment.isoformat(),
    }
    mem = {**busy, "code": "mem", "what": "mem 8 GiB > 5.8 GiB free"}
    late = {**mem, "passes_at": "2020-01-01T00:00:00Z"}
    shown = document(
        *(node(name, "later") | {"reasons": reasons} for name, reasons in (("a", [busy]), ("b", [mem]), ("c", [late]))),
        node("d", "never") | {"reasons": [busy]},
        why_slow=[
            {"code": "retries", "what": "14 of 126 attempts were made again", "fix": "why: p2pc show JOB/TASK"},
            {"code": "limit", "what": "-j 2: so many tasks run", "fix": None},
        ],
    )
    print_explanation(shown, as_json=False)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert f"a     later    all 8 slots busy; frees ~{moment:%H:%M:%S}" in lines
    assert f"b     later    mem 8 GiB > 5.8 GiB free; a task there ends ~{moment:%H:%M:%S}" in lines
    assert "c     later    mem 8 GiB > 5.8 GiB free; a task there ends about now" in lines
    assert "d     never    all 8 slots busy" in lines, "that it has room then does not help"
    at = lines.index("Why it is not faster")
    assert lines[at + 1 : at + 3] == [
        "14 of 126 attempts were made again; why: p2pc show JOB/TASK",
        "-j 2: so many tasks run",
    ]


def test_a_job_that_can_never_run_ends_with_4(capsys: Any) -> None:
    shown = document(node("nova", "never", "needs tag=lab; it has none"), node("nova", "never", "x\x1b[2J"))
    assert print_explanation(shown, as_json=False) == 4
    assert "\x1b" not in capsys.readouterr().out, "names and reasons come from other machines"
    error = never_error(shown)
    assert exit_code_of(error) == 4 and error.why.startswith("nova NOVA: needs tag=lab; it has none")
    assert "\x1b" not in error.why


def test_a_name_that_no_node_has_makes_a_job_wait_only_where_it_is_required() -> None:
    """Else a job that runs at once is said to wait, because it would like what nobody has."""
    unheard = [
        {"name": "zzz", "near": None, "is_required": False},
        {"name": "rock", "near": "rack", "is_required": True},
    ]
    lines = unheard_lines(document(unheard=unheard))
    assert lines[0] == "note: no node here has zzz: --prefer changes nothing by it"
    assert lines[3] == "note: no node here has rock: this waits for one that does"
    assert "did you mean rack?" in lines[5]


def test_sentence_says_how_long_and_for_how_many() -> None:
    job = {"alias": "j7k3", "state": "running", "running": 3, "waiting": 1, "by_node": [{"node": "nova", "running": 3}]}
    assert stalled_lines(document(node("nova", "now"), job=job))[0] == (
        "j7k3 runs: 3 tasks on nova, 1 task waiting.  1 of 1 node can take it now."
    )
    job = {"alias": "j7k3", "state": "waiting", "submitted": None}
    assert stalled_lines(document(node("nova", "later", "busy"), job=job))[0] == (
        "j7k3: 0 of 1 node can take it now, 1 can later."
    )


def test_what_was_computed_waits_for_belief_and_not_for_a_node() -> None:
    """If it broke: "3 of 3 nodes can take it now" of a job that nobody can take any more."""
    doubt = {"what": "3 results of ada are not believed yet: no trusted node works", "fix": "invite another"}
    job = {"alias": "j7k3", "state": "waiting", "submitted": None, "running": 0, "waiting": 3, "checking": 3}
    assert stalled_lines(document(node("nova", "now"), job={**job, "doubt": doubt}))[0] == (
        "j7k3 was computed and waits to be believed: 3 results of ada are not believed yet: no trusted node works; "
        "invite another."
    )
    for other in ({**job, "doubt": None}, {**job, "doubt": doubt, "waiting": 4}):
        assert "1 of 1 node can take it now" in stalled_lines(document(node("nova", "now"), job=other))[0]
    task = {"index": 1, "state": "waiting", "belief": {"believed": False, "why": "only ada ran it"}}
    shown = document(node("nova", "now"), job={**job, "doubt": doubt})
    assert _sentence(shown, task) == "j7k3/1 was computed and waits to be believed: only ada ran it."
    assert "can take it now" in _sentence(shown, {**task, "belief": None})


def test_a_stall_is_said_once_and_again_after_work() -> None:
    """Either nobody says why nothing happens, or it is said ten times a second."""
    stall, waiting = Stall(0.0), {"done": 0, "failed": 0, "running": 0, "waiting": 5}
    stall.take(waiting, 1.0)
    assert not stall.is_due(STALL_S - 0.1)
    assert stall.is_due(STALL_S) and not stall.is_due(STALL_S + 100)
    stall.take({**waiting, "running": 1}, 200.0)
    assert not stall.is_due(205.0)
    stall.take(waiting, 206.0)
    assert stall.is_due(200.0 + STALL_S)
    stall.take({**waiting, "done": 1}, 300.0)
    assert not stall.is_due(305.0)


def test_results_that_nobody_believes_are_spoken_of_once_and_only_if_somebody_can_help() -> None:
    """Else a job of which one member has done everything stands still, and nobody knows why."""
    doubt, moving = Doubt(), {"doubt": {"what": "a trusted node computes them again", "fix": None}}
    waiting = {"doubt": {"what": "3 results of atlas are not believed yet", "fix": "p2pc trust set atlas trusted"}}
    assert not doubt.is_due({}, 0.0) and not doubt.is_due(moving, 100.0)
    assert not doubt.is_due(waiting, 200.0) and not doubt.is_due(waiting, 199.9 + STALL_S)
    assert doubt.is_due(waiting, 200.0 + STALL_S) and not doubt.is_due(waiting, 900.0)
    assert doubt_lines(waiting) == [waiting["doubt"]["what"], waiting["doubt"]["fix"]]


def test_who_waits_for_a_custodian_is_told_for_how_long() -> None:
    """Else a job stands still for half a minute, and nobody who looks at it knows why."""
    away = {"node": "ada", "is_owner": True, "away_since": "2026-11-23T10:00:00Z", "next": "pi4",
            "next_at": "2026-11-23T10:00:30Z"}  # fmt: skip
    now = datetime(2026, 11, 23, 10, 0, 12, tzinfo=UTC).timestamp()
    job: dict[str, Any] = {"alias": "j7k3", "state": "waiting", "submitted": None, "owner": "ada", "coordinator": away}
    text = "ada, its owner, is away for 12.0 s; pi4 takes over in 18.0 s"
    assert coordinator_text(job, now) == text
    assert coordinator_text(job, now + 60).endswith("is away for 1 min 12 s; pi4 takes over now")
    nobody = {**away, "next": None, "next_at": None}
    assert coordinator_text({"coordinator": nobody}, now).endswith("nobody else who keeps the job is here: it waits")
    acting = {**nobody, "node": "pi4", "is_owner": False, "away_since": None}
    assert coordinator_text({"coordinator": acting}, now) == "its owner is away: pi4 gives out its tasks"
    assert not coordinator_text({"coordinator": {**acting, "node": "ada", "is_owner": True}}, now)
    assert not coordinator_text({"coordinator": None}, now) and not coordinator_text({}, now)
    assert "ada, its owner, is away for" in stalled_lines(document(node("nova", "now"), job=job))[0]
    job["coordinator"] = {**acting, "node": "ada", "is_owner": True}
    assert stalled_lines(document(node("nova", "now"), job=job))[0].endswith(
        "ada hands out its tasks; when that is away, a node that keeps the job does."
    )
