"""What is said to the person whose job waits: true of every node, and what is suggested helps."""

from __future__ import annotations

import re
import shlex
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.cli.run import run
from p2pcompute.cli.run_request import needs_of
from p2pcompute.config import parse_size
from p2pcompute.errors import UsageError
from p2pcompute.host.interfaces import Attribute, Value
from p2pcompute.limits import REQUIREMENT_CHARS_MAX, REQUIREMENTS_MAX
from p2pcompute.resources.explaining import Edit, Finding, Machine, apply, explain, flags_of
from p2pcompute.resources.expressions import View
from p2pcompute.resources.matching import Known, Needs, Verdict, check_needs, compile_needs, is_accepted

WALL_S = 1000.0
GIB = 1 << 30
CHANGING = ("load", "mem.free", "disk.free", "slots.busy", "queue")


def known(**values: Value) -> Known:
    """What a node said ten seconds ago; "_" in a name stands for a dot."""
    attributes = {}
    for name, value in values.items():
        dotted = name.replace("_", ".")
        attributes[dotted] = Attribute(value, WALL_S - 10, 30.0 if dotted in CHANGING else None)
    return Known(attributes, WALL_S)


NOVA = known(
    os="linux", arch="x86_64", cpus=8.0, mem_total=15 * GIB, mem_free=int(5.8 * GIB), has=("ffmpeg",), load=0.5
)
ATLAS = known(os="linux", arch="x86_64", cpus=16.0, mem_total=31 * GIB, mem_free=20 * GIB, has=(), load=0.1)
PI4 = known(os="linux", arch="aarch64", cpus=4.0, mem_total=int(3.7 * GIB), mem_free=3 * GIB, has=("ffmpeg",), load=0.0)
MESH = [Machine("nova", NOVA), Machine("atlas", ATLAS), Machine("pi4", PI4), Machine("desk-2", None)]
THUMBS = Needs(require=("has=ffmpeg", "arch=x86_64"), mem_bytes=8 * GIB)


def test_every_reason_of_every_node_is_named() -> None:
    report = explain(THUMBS, MESH)
    assert [(account.name, account.verdict, [one.what for one in account.findings]) for account in report.accounts] == [
        ("nova", "later", ["mem 8 GiB > 5.8 GiB free (of 15 GiB)"]),
        ("atlas", "never", ["needs has=ffmpeg; not installed there"]),
        ("pi4", "never", ["needs arch=x86_64, is aarch64", "mem 8 GiB > 3.7 GiB total"]),
        ("desk-2", "unknown", ["it has not said what it has"]),
    ]
    assert not report.can_never_run
    assert [(one.what, one.effect) for one in report.suggestions] == [
        ("--mem 5G", "nova could start it now"),
        ("drop has=ffmpeg", "atlas could start it now (or install ffmpeg there)"),
        ("drop arch=x86_64 and --mem 2G", "nova, pi4 could start it now"),
    ]
    assert report.suggestions[0].needs == Needs(require=THUMBS.require, mem_bytes=5 * GIB)
    assert "Python" in report.not_the_cause
    assert "requirements" not in report.not_the_cause
    assert "amounts" not in report.not_the_cause


def test_a_job_that_runs_needs_no_help() -> None:
    report = explain(Needs(require=("os=linux",)), MESH)
    assert [account.verdict for account in report.accounts] == ["now", "now", "now", "unknown"]
    assert not report.suggestions
    assert "requirements" in report.not_the_cause


def test_a_job_that_no_node_will_ever_run() -> None:
    report = explain(Needs(require=("os=plan9",)), MESH[:3])
    assert report.can_never_run
    assert [one.what for one in report.suggestions] == ["drop os=plan9"]


def test_more_disk_than_there_is_is_never_and_less_is_later() -> None:
    nova = Machine("nova", known(disk_total=252 * GIB, disk_free=int(74.5 * GIB)))
    for size, verdict, what, helps in (
        (900 * GIB, "never", "disk 900 GiB > 252 GiB total", "--disk 67G"),
        (100 * GIB, "later", "disk 100 GiB > 74.5 GiB free (of 252 GiB)", "--disk 67G"),
    ):
        report = explain(Needs(disk_bytes=size), [nova])
        assert [one.what for one in report.accounts[0].findings] == [what]
        assert report.accounts[0].verdict == verdict
        assert [one.what for one in report.suggestions] == [helps]


def test_no_task_is_told_to_do_with_next_to_nothing() -> None:
    """People paste `--mem 12K`, and the task is killed as it starts."""
    now: dict[str, Value] = {"mem_total": 4 * GIB, "mem_free": 600_000}
    report = explain(Needs(mem_bytes=GIB), [Machine("nova", known(**now))])
    assert [one.what for one in report.suggestions] == ["drop --mem 1G"]


def test_what_changes_is_later_and_what_lasts_is_never() -> None:
    def verdict(*require: str) -> str:
        return explain(Needs(require=require), MESH[:1]).accounts[0].verdict

    assert verdict("load<0.2") == "later"
    assert verdict("cpus>=16") == "never"
    assert verdict("cpus>=16 || load<0.2") == "later"
    assert verdict("cpus>=16 && load<0.2") == "never"
    assert verdict("gpu>0") == "unknown"
    assert verdict("gpu>0 && load<0.2") == "unknown", "what is over later may not be enough"


@pytest.mark.parametrize(
    ("require", "suggested"),
    [
        ("cpus>=16", "--require 'cpus>=8'"),
        ("node.mem.total > 16GiB", "--require 'node.mem.total > 14G'"),
        ("load < 0.25", "--require 'load < 0.55'"),
        ("load<=0.25", "--require 'load<=0.55'"),
        ("os=linux && (cpus > 8 && has=ffmpeg)", "--require 'os=linux && cpus > 7 && has=ffmpeg'"),
        ("load<0.1 && tag=lab", "--require 'load<0.55'"),
        ("os == 'linux' && cpus>=16", "--require 'os == '\\''linux'\\'' && cpus>=8'"),
        ("gpu>0", "drop gpu>0"),
        ("os=mac || arch=arm64", "drop os=mac || arch=arm64"),
        ("'lab' in tag", "drop 'lab' in tag"),
    ],
)
def test_nearest_change(require: str, suggested: str) -> None:
    report = explain(Needs(require=(require,)), MESH[:1])
    assert report.suggestions[0].what == suggested
    assert compile_needs(report.suggestions[0].needs).fits(NOVA.view)


@pytest.mark.parametrize(
    ("require", "suggested", "later"),
    [
        ("load<10", "'load<14'", {"load": 13.0}),
        ("load<=10", "'load<=14'", {"load": 13.0}),
        ("mem.free>12GiB", "'mem.free>9G'", {"mem_free": int(9.4 * GIB)}),
        ("slots.busy<3", "'slots.busy<4'", {}),
        ("queue<=3", "'queue<=5'", {}),
    ],
)
def test_a_suggested_bound_leaves_room(require: str, suggested: str, later: dict[str, Value]) -> None:
    """The number that is suggested is the measured one, and false by the time that it is pasted."""
    now: dict[str, Value] = {"load": 12.66, "mem_free": 10 * GIB, "slots_busy": 3, "queue": 5}
    [suggestion] = explain(Needs(require=(require,)), [Machine("nova", known(**now))]).suggestions
    assert suggestion.what == f"--require {suggested}"
    assert compile_needs(suggestion.needs).fits(known(**{**now, **later}).view)


def test_a_tag_is_added_to_the_labels_of_a_node() -> None:
    """The fix takes away the labels that the node has: the setting replaces them all."""
    cases: tuple[tuple[dict[str, Value], str], ...] = (
        ({"tag": ()}, "tag it there: p2pc config set node.labels lab"),
        ({"tag": ("a", "b"), "label.room": "b12"}, "tag it there: p2pc config set node.labels a,b,room=b12,lab"),
        ({"tag": (), "label.x": "$(id) y"}, "tag it there: p2pc config set node.labels 'x=$(id) y,lab'"),
        ({"tag": (), "label.x": "a,b"}, "tag it there: add lab to its node.labels (p2pc config set replaces them all)"),
        ({}, "tag it there: add lab to its node.labels (p2pc config set replaces them all)"),
    )
    for values, fix in cases:
        said = Known({key: Attribute(value, WALL_S) for key, value in values.items()}, WALL_S)
        [account] = explain(Needs(require=("tag=lab",)), [Machine("nova", said)]).accounts
        assert [finding.fix for finding in account.findings] == [fix]


def test_what_is_left_of_a_requirement_keeps_its_meaning() -> None:
    needs = Needs(require=("(os=mac || cpus>2) && tag=lab && (load<1 ? true : gpu>0)",))
    report = explain(needs, [Machine("nova", known(os="linux", cpus=8.0, load=0.5, tag=("old",)))])
    assert report.suggestions[0].needs.require == ("(os=mac || cpus>2) && (load<1 ? true : gpu>0)",)


def test_memory_in_a_requirement_is_a_requirement() -> None:
    report = explain(Needs(require=("mem>=64GiB",)), MESH[:3])
    assert "requirements" not in report.not_the_cause and "amounts" in report.not_the_cause


def test_a_node_that_is_out_of_reach_is_no_help() -> None:
    away = Finding("unreachable", Verdict.UNKNOWN, "not seen for 12 s")
    report = explain(THUMBS, [Machine("nova", NOVA, (away,))])
    assert report.accounts[0].verdict == "unknown"
    assert report.accounts[0].findings[0].what == "not seen for 12 s"
    assert not report.suggestions


def test_a_choice_of_nodes_is_a_flag_too() -> None:
    not_chosen = Finding("on", Verdict.NEVER, "not chosen: --on atlas", edit=Edit("--on", 0, "atlas", ""))
    report = explain(Needs(mem_bytes=8 * GIB), [Machine("nova", NOVA, (not_chosen,)), Machine("atlas", PI4)])
    assert [one.what for one in report.suggestions] == ["--mem 2G", "drop --on atlas and --mem 5G"]
    assert report.suggestions[0].nodes == ("atlas",)


def test_needs_are_checked() -> None:
    check_needs(Needs(require=("os=linux", "cpus>=2"), prefer=("-load", "has=ffmpeg")))
    for needs in (
        Needs(require=("os=",)),
        Needs(require=("cpus",)),
        Needs(prefer=("os",)),
        Needs(require=("true",) * (REQUIREMENTS_MAX + 1)),
        Needs(require=("true && " * 60 + "true",) * (1 + REQUIREMENT_CHARS_MAX // 400)),
    ):
        with pytest.raises(UsageError):
            check_needs(needs)


def test_rank_adds_up_and_leaves_out_what_is_not_known() -> None:
    requirement = compile_needs(Needs(prefer=("cpus", "gpu.count * 100", "has=ffmpeg", "1 / (load - load)")))
    assert requirement.rank(NOVA.view) == 9.0
    assert requirement.rank(View({})) == 0.0


def test_matching_goes_both_ways() -> None:
    job: dict[str, Value] = {"cpus": 2.0, "kind": "shell"}
    assert is_accepted("", {}, job) is True
    assert is_accepted("job.cpus <= 4 && job.kind != 'shell'", {}, job) is False
    assert is_accepted("job.cpus <= node.cpus / 2.0", {"cpus": 8.0}, job) is True
    assert is_accepted("job.gpus == 0", {}, job) is None
    assert is_accepted("job.cpus <=", {}, job) is None


# --- each pasted suggestion makes it runnable -----------------------------------------------------


def pasted(flags: tuple[str, ...]) -> Needs:
    """Read flags as `p2pc run` is given them."""
    given = run.make_context("run", [*flags, "true", ":::", "a"]).params
    needs = needs_of(given, parse_size(given["mem"]) if given["mem"] else None)
    return needs or Needs()


def _machine(rng: Random) -> Known:
    """A node of any kind; it may not say everything of itself."""
    size = 1 << rng.randint(24, 40)
    values: dict[str, Value] = {
        "os": rng.choice(["linux", "darwin"]),
        "cpus": float(rng.randint(1, 128)) if rng.random() < 0.8 else rng.uniform(0.1, 8),
        "arch": rng.choice(["x86_64", "aarch64"]),
        "mem.total": size,
        "mem.free": rng.randint(1 << 22, size),
        "disk.total": (disk := 1 << rng.randint(1, 40)),
        "disk.free": rng.randint(0, disk),
        "gpu.count": rng.randint(0, 8),
        "gpu.model": rng.choice(["A100", 'it\'s "new"']),
        "has": tuple(rng.sample(["ffmpeg", "blender", "wasm"], rng.randint(0, 3))),
        "tag": tuple(rng.sample(["ffmpeg", "blender", "wasm"], rng.randint(0, 3))),
        "load": rng.choice([0.0, 5e-324, rng.uniform(0, 0.01), rng.uniform(0, 64)]),
        "battery": rng.random() < 0.5,
        "label.room": rng.choice(["b12", "a 3"]),
    }
    share = rng.random()
    return known(**{name.replace(".", "_"): value for name, value in values.items() if rng.random() >= share * 0.3})


_LEAVES = st.one_of(
    st.sampled_from(
        [
            *(
                "os=linux",
                "os!=darwin",
                "arch == 'x86_64'",
                "has=ffmpeg",
                "!has=wasm",
                "'blender' in node.has",
                "tag=wasm",
            ),
            *("!battery", "gpu>0 || cpus>=8", "gpu.model='A100'", "label.room=b12", "has.exists(x, x.endsWith('m'))"),
            *("gpu.model == 'it\\'s \"new\"'", "battery ? cpus>4 : true", "job.cpus <= 4", "python=3.12"),
        ]
    ),
    st.builds("cpus>={}".format, st.integers(1, 256)),
    st.builds("node.cpus > {}".format, st.floats(0, 20).map(lambda x: round(x, 2))),
    st.builds("load {} {}".format, st.sampled_from(["<", "<="]), st.floats(0, 10).map(lambda x: round(x, 3))),
    st.builds("mem>={}GiB".format, st.integers(1, 2000)),
    st.builds("mem.free > {}M".format, st.integers(1, 2000)),
)
_CLAUSES = st.one_of(_LEAVES, st.builds("({} || {})".format, _LEAVES, _LEAVES))
_NEEDS = st.builds(
    Needs,
    require=st.one_of(
        st.tuples(_CLAUSES, _CLAUSES, _CLAUSES, _CLAUSES, _CLAUSES),
        st.tuples(st.builds("{} && ({} && {})".format, _CLAUSES, _CLAUSES, _CLAUSES), _CLAUSES, _CLAUSES),
    ),
    cpus=st.sampled_from([1.0, 4.0]),
    mem_bytes=st.none() | st.integers(1 << 20, 1 << 36),
    gpus=st.sampled_from([0.0, 0.0, 2.0]),
    disk_bytes=st.none() | st.integers(1, 1 << 36),
)


@settings(max_examples=40)
@given(_NEEDS, st.integers(0, 1 << 32))
def test_each_pasted_suggestion_makes_it_runnable(needs: Needs, seed: int) -> None:
    rng = Random(seed)
    nodes = {f"n{index}": _machine(rng) for index in range(50)}
    report = explain(needs, [Machine(name, one) for name, one in nodes.items()])
    assert pasted(flags_of(needs)) == needs
    requirement = compile_needs(needs)
    for account in report.accounts:
        assert (account.verdict is Verdict.NOW) == (requirement.fits(nodes[account.name].view) is True)
        assert all(one.what for one in account.findings)
    if report.count(Verdict.NOW):
        return
    for suggestion in report.suggestions:
        again = pasted(flags_of(suggestion.needs))
        for shown in re.findall(r"--require '(?:[^']|'\\'')*'", suggestion.what):
            assert shlex.split(shown)[1] in again.require, "what is shown is what was tried"
        assert suggestion.nodes
        assert all(compile_needs(again).fits(nodes[name].view) for name in suggestion.nodes)
        # Nearest: with any one of its changes left out, it does not help them all.
        if len(suggestion.edits) > 1:
            for left_out in range(len(suggestion.edits)):
                rest = suggestion.edits[:left_out] + suggestion.edits[left_out + 1 :]
                fewer = compile_needs(apply(needs, rest))
                assert not all(fewer.fits(nodes[name].view) for name in suggestion.nodes)


def test_packages_and_images() -> None:
    """Nobody wrote these requirements, so it is said what they come from and how a node could meet them."""
    wheels = Needs(has_packages=True, platforms=("linux/x86_64", "macos/aarch64"))
    with_uv = known(os="linux", arch="x86_64", has=("uv",))
    arm = known(os="linux", arch="aarch64", has=("uv",))
    report = explain(
        wheels, [Machine("a", with_uv), Machine("b", arm), Machine("c", known(os="macos", arch="aarch64", has=()))]
    )
    assert [(account.verdict, [one.what for one in account.findings]) for account in report.accounts] == [
        ("now", []),
        ("never", ["its packages have no wheels for linux/aarch64"]),
        ("never", ["needs has=uv; not installed there (install uv>=0.9 there)"]),
    ]
    image = Needs(runtime="container")
    report = explain(image, [Machine("a", known(has=("docker",))), Machine("b", known(has=()))])
    assert [account.verdict for account in report.accounts] == ["now", "never"]
    assert report.accounts[1].findings[0].what == "has no container engine (install podman there)"
