"""Who is up when: laws against theory, equilibrium from the first moment on, traces, waves, events, machines."""

from __future__ import annotations

import codecs
import gzip
import math
import os
import random
import statistics
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.errors import UsageError
from p2pcompute.simulation.avt import LINE_CHARS_MAX, read_avt, replay
from p2pcompute.simulation.mesh_run import MeshRun
from p2pcompute.simulation.mesh_settings import MeshSettings
from p2pcompute.simulation.population import (
    CORES,
    FITS,
    HOUR_S,
    SPEED_SIGMA,
    Event,
    Law,
    LogNormal,
    NodeClass,
    PopulationSettings,
    Preset,
    Weibull,
    draw_events,
    draw_rows,
    laws,
    machine,
    sessions,
    trace_note,
)

LAWS: list[Law] = [
    Weibull(0.5, 100.0),
    Weibull(0.85, 3.0),
    Weibull(2.0, 10.0),
    LogNormal(1.0, 0.5),
    LogNormal(2.0, 1.2),
]
SKYPE = Path(os.environ.get("P2PC_TRACES", ""), "SKYPE.avt.gz")
"""The trace of Guha et al. 2006, when the folder that holds it is named; it may not be passed on."""


def rng_of(*what: object) -> random.Random:
    return random.Random(":".join(map(str, what)))


def survival(law: Law, length_s: float) -> float:
    """P(X > length), straight from the definitions."""
    if isinstance(law, Weibull):
        return math.exp(-((length_s / law.scale_s) ** law.shape))
    return 0.5 * math.erfc((math.log(length_s) - law.mu) / (law.sigma * math.sqrt(2)))


def residual_cdf(law: Law, length_s: float, steps: int = 4000) -> float:
    """P(residual of the covering one ≤ length) = ∫ P(X > x) dx / E[X], by the midpoint rule in powers of x."""
    edges = [length_s * (number / steps) ** 3 for number in range(steps + 1)]
    area = sum((high - low) * survival(law, (low + high) / 2) for low, high in pairwise(edges))
    return area / law.mean_s


def distance(samples: list[float], cdf: Callable[[float], float]) -> float:
    """Kolmogorov-Smirnov distance at the samples' own percentiles."""
    ordered = sorted(samples)
    places = range(len(ordered) // 100, len(ordered), len(ordered) // 50)
    return max(abs(cdf(ordered[place]) - (place + 0.5) / len(ordered)) for place in places)


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_lengths_follow_their_law(law: Law) -> None:
    rng = rng_of("lengths", law)
    drawn = [law.quantile(rng.gauss(0, 1)) for _ in range(5000)]
    assert distance(drawn, lambda x: 1 - survival(law, x)) < 0.025


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_at_a_given_moment_the_rest_of_the_covering_length_follows_renewal_theory(law: Law) -> None:
    """A fresh length, or one cut at random, would give other lookups at the start than later."""
    rng = rng_of("residual", law)
    drawn = [law.covering(rng) * rng.random() for _ in range(5000)]
    assert distance(drawn, lambda x: residual_cdf(law, x)) < 0.025


@pytest.mark.parametrize("law", LAWS, ids=repr)
@given(score=st.floats(-5, 5))
def test_score_is_the_inverse_of_quantile(law: Law, score: float) -> None:
    assert law.score(law.quantile(score)) == pytest.approx(score, abs=1e-5)


def test_means_are_those_of_the_published_fits() -> None:
    """Weibull means of the Failure Trace Archive's fits lie near the exponential fits, which are the sample means."""
    found = laws("skype")
    assert found is not None
    assert found[0].mean_s / HOUR_S == pytest.approx(16.27, rel=0.08)
    assert found[1].mean_s / HOUR_S == pytest.approx(14.31, rel=0.08)
    two_quantiles = laws("ipfs")
    assert two_quantiles is not None
    assert 1 - survival(two_quantiles[0], 2 * HOUR_S) == pytest.approx(0.5, abs=0.01)
    assert 1 - survival(two_quantiles[0], 8 * HOUR_S) == pytest.approx(0.8, abs=0.01)


# --- sessions -------------------------------------------------------------------------------------


def availability(preset: Preset) -> float:
    found = laws(preset)
    assert found is not None
    up, down = found
    return up.mean_s / (up.mean_s + down.mean_s)


def begin_up(chosen: PopulationSettings, count: int = 4000) -> float:
    return sum(next(sessions(chosen, rng_of("up", node), node)).begin_s == 0 for node in range(count)) / count


@pytest.mark.parametrize("preset", sorted(FITS))
def test_a_preset_starts_with_its_share_of_nodes_up(preset: str) -> None:
    chosen = msgspec.convert({"sessions": preset}, PopulationSettings)
    share = availability(chosen.sessions)
    assert begin_up(chosen) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000) + 0.001)


def up_at(chosen: PopulationSettings, at_s: float, events: tuple[Event, ...] = (), count: int = 2000) -> float:
    """Share of nodes that are up at a time."""
    up = 0
    for node in range(count):
        for session in sessions(chosen, rng_of("at", node), node, events):
            if session.end_s > at_s:
                up += session.begin_s <= at_s
                break
    return up / count


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_the_share_that_is_up_stays_as_it_began(correlation: float) -> None:
    chosen = PopulationSettings(sessions="overnet", correlation=correlation)
    share = availability(chosen.sessions)
    for at_s in (0.1, 2 * HOUR_S, 20 * HOUR_S):
        assert up_at(chosen, at_s) == pytest.approx(share, abs=0.04)


@settings(max_examples=60)
@given(
    preset=st.sampled_from(sorted(FITS)),
    correlation=st.sampled_from([0.0, 0.9]),
    amplitude=st.sampled_from([0.0, 0.5, 0.95]),
    sites=st.integers(1, 5),
    flash=st.sampled_from([0.0, 1.0]),
    exit_hours=st.sampled_from([0.0, 3.0]),
    outages=st.sampled_from([0.0, 20.0]),
    seed=st.integers(0, 1000),
)
def test_sessions_ascend_without_overlap_and_spare_what_is_away(
    preset: str,
    correlation: float,
    amplitude: float,
    sites: int,
    flash: float,
    exit_hours: float,
    outages: float,
    seed: int,
) -> None:
    chosen = msgspec.convert(
        {
            "sessions": preset, "time_scale": 0.1, "correlation": correlation, "sites": sites,
            "day_amplitude": amplitude, "flash_share": flash, "flash_at_hours": 1.0,
            "exit_share": 1.0, "exit_at_hours": 2.0, "exit_hours": exit_hours,
            "outages_per_day": outages, "outage_minutes": 30.0,
        },
        PopulationSettings,
    )  # fmt: skip
    events = draw_events(chosen, rng_of("events", seed), duration_s=24 * HOUR_S)
    assert [event.at_s for event in events] == sorted(event.at_s for event in events)
    before = 0.0
    for session in islice(sessions(chosen, rng_of(seed), seed, events), 40):
        assert before <= session.begin_s < session.end_s
        before = session.end_s
        for event in events:
            if event.site in (None, seed % sites):
                assert session.end_s <= event.at_s or session.begin_s >= event.until_s
                if session.end_s == event.at_s and event.kind == "outage":
                    assert session.leaving == "silent"
        if flash:
            assert session.begin_s >= HOUR_S
    again = [*islice(sessions(chosen, rng_of(seed), seed, events), 40)]
    assert again == [*islice(sessions(chosen, rng_of(seed), seed, events), 40)]


def test_neighbouring_sessions_resemble_one_another_when_they_should() -> None:
    found: dict[float, float] = {}
    for correlation in (0.0, 0.7):
        chosen = PopulationSettings(sessions="kad", correlation=correlation)
        law = laws("kad")
        assert law is not None
        scores = []
        for node in range(150):
            some = islice(sessions(chosen, rng_of("neighbours", node), node), 1, 21)
            scores.append([law[0].score(session.end_s - session.begin_s) for session in some])
        pairs = [pair for row in scores for pair in pairwise(row)]
        found[correlation] = statistics.correlation([one for one, _ in pairs], [other for _, other in pairs])
        assert statistics.mean(one for one, _ in pairs) == pytest.approx(0, abs=0.12)
    assert found[0.0] == pytest.approx(0.0, abs=0.06)
    assert found[0.7] == pytest.approx(0.7, abs=0.06)


def test_without_a_model_all_are_always_up() -> None:
    assert next(sessions(PopulationSettings(), rng_of(1), 0))[:2] == (0.0, math.inf)


def test_classes_have_their_share_and_their_own_sessions() -> None:
    chosen = PopulationSettings(
        sessions="kad",
        classes=(NodeClass(share=0.3), NodeClass(share=0.3, sessions="overnet", time_scale=0.1, once=True)),
    )
    lives = [[*islice(sessions(chosen, rng_of("class", node), node), 5)] for node in range(1000)]
    assert sum(life[0].end_s == math.inf for life in lives) / 1000 == pytest.approx(0.3, abs=0.05)
    assert sum(len(life) == 1 and life[0].end_s < math.inf for life in lives) / 1000 == pytest.approx(0.3, abs=0.05)


def test_leaving_has_the_shares_that_were_asked_for() -> None:
    chosen = PopulationSettings(sessions="kad", graceful=0.6, silent=0.3)
    ends = [session.leaving for node in range(200) for session in islice(sessions(chosen, rng_of(node), node), 20)]
    for leaving, share in (("stop", 0.6), ("silent", 0.3), ("crash", 0.1)):
        assert ends.count(leaving) / len(ends) == pytest.approx(share, abs=0.04)  # type: ignore[arg-type]


def test_by_day_more_are_up_than_by_night_each_site_in_its_own_time() -> None:
    chosen = PopulationSettings(
        sessions="custom",
        up=(1.0, 2.0),
        down=(1.0, 2.0),
        day_amplitude=0.8,
        day_peak_hour=12.0,
        sites=2,
        zones=(0.0, 12.0),
    )

    def up(site: int, hour: float) -> float:
        at_s, nodes = hour * HOUR_S, range(site, 1600, 2)
        lives = [sessions(chosen, rng_of("wave", node), node) for node in nodes]
        last = [next(session for session in life if session.end_s > at_s) for life in lives]
        return sum(session.begin_s <= at_s for session in last) / len(last)

    afternoon, night = 15.0, 27.0
    assert min(up(0, afternoon), up(1, night)) > 0.65
    assert max(up(0, night), up(1, afternoon)) < 0.35
    assert up(0, 0.001) < 0.4, "the wave has been there before the start"


def test_a_flash_crowd_is_not_there_before_and_comes_at_once() -> None:
    chosen = PopulationSettings(sessions="kad", flash_share=1.0, flash_at_hours=5.0)
    assert up_at(chosen, 5 * HOUR_S - 1, count=300) == 0.0
    assert up_at(chosen, 5 * HOUR_S, count=300) == 1.0


def test_a_mass_exit_takes_its_share_and_they_come_back() -> None:
    chosen = PopulationSettings(exit_share=0.5, exit_at_hours=1.0, exit_hours=2.0)
    events = tuple(draw_events(chosen, rng_of("e"), duration_s=1e9))
    assert up_at(chosen, 0.99 * HOUR_S, events) == 1.0
    assert up_at(chosen, HOUR_S, events) == pytest.approx(0.5, abs=0.05)
    assert up_at(chosen, 3 * HOUR_S, events) == 1.0
    for_good = PopulationSettings(exit_share=0.5, exit_at_hours=1.0)
    life = [*sessions(for_good, rng_of(3), 0, [Event("mass exit", HOUR_S, math.inf, 1.0)])]
    assert [session[:2] for session in life] == [(0.0, HOUR_S)]


def test_an_outage_takes_a_whole_site_and_no_other() -> None:
    chosen = PopulationSettings(sites=3, outages_per_day=24.0, outage_minutes=6.0)
    events = draw_events(chosen, rng_of("outages"), duration_s=48 * HOUR_S)
    assert len(events) == pytest.approx(3 * 48, rel=0.25)
    assert statistics.mean(event.until_s - event.at_s for event in events) == pytest.approx(360, rel=0.25)
    event = events[0]
    for node in range(9):
        ends = [session.end_s for session in islice(sessions(chosen, rng_of(node), node, events), 3)]
        assert (event.at_s in ends) == (node % 3 == event.site)


def test_ten_thousand_nodes_are_cheap() -> None:
    """Each life is an iterator: nothing is drawn before it is asked for."""
    chosen = PopulationSettings(sessions="planetlab", sites=10, outages_per_day=5.0)
    events = draw_events(chosen, rng_of("e"), duration_s=HOUR_S)
    lives = [sessions(chosen, rng_of(node), node, events) for node in range(10_000)]
    assert sum(next(life).begin_s == 0 for life in lives) > 7000


# --- settings that cannot be ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"sessions": "gnutella"},
        {"sessions": "custom"},
        {"sessions": "custom", "up": [1.0, 2.0]},
        {"sessions": "skype", "up": [1.0, 2.0], "down": [1.0, 2.0]},
        {"sessions": "custom", "up": [0.0, 2.0], "down": [1.0, 2.0]},
        {"sessions": "custom", "family": "lognormal", "up": [0.0, 0.0], "down": [1.0, 2.0]},
        {"sessions": "kad", "family": "lognormal"},
        {"graceful": 0.8, "silent": 0.3},
        {"classes": [{"share": 0.7}, {"share": 0.7}]},
        {"classes": [{"share": 0.7, "sessions": "custom"}]},
        {"trace": "x.avt", "sessions": "kad"},
        {"trace_from_hours": 1.0},
        {"correlation": 1.0},
        {"time_scale": 0.0},
        {"unknown": 1},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, PopulationSettings)


# --- traces ---------------------------------------------------------------------------------------


def write_trace(path: Path, text: str) -> str:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return str(path)


GOOD = "# a comment\na 2 100 200 300 400\n\nb 0\nc 1 150 500\n"


@pytest.mark.parametrize("name", ["good.avt", "good.avt.gz"])
def test_a_trace_is_read_and_replayed_from_its_start(tmp_path: Path, name: str) -> None:
    path = write_trace(tmp_path / name, GOOD)
    trace = read_avt(path)
    assert (trace.begin_s, trace.end_s) == (100, 500)
    assert [[*row] for row in trace.rows] == [[100, 200, 300, 400], [], [150, 500]]
    assert [*islice(replay(trace, 0), 4)] == [(0, 100), (200, 300), (400, 500), (600, 700)]
    assert [*replay(trace, 1)] == []
    assert [*islice(replay(trace, 2), 2)] == [(50, 400), (450, 800)]
    assert [*islice(replay(trace, 0, from_s=50), 3)] == [(0, 50), (150, 250), (350, 450)]
    chosen = PopulationSettings(trace=path, time_scale=0.5)
    lives = [tuple(session[:2] for session in islice(sessions(chosen, rng_of(node), node), 2)) for node in range(50)]
    assert sorted(dict.fromkeys(lives)) == [(), ((0, 50), (100, 150)), ((25, 200), (225, 400))]


def test_each_line_of_a_trace_is_taken_once_when_there_are_enough(tmp_path: Path) -> None:
    text = "".join(f"{node} 1 0 {node + 1}\n" for node in range(20))
    chosen = PopulationSettings(trace=write_trace(tmp_path / "many.avt", text))
    rows = draw_rows(chosen, rng_of(1), 20)
    assert sorted(rows) == [*range(20)] and rows != sorted(rows)
    assert rows == draw_rows(chosen, rng_of(1), 20) != draw_rows(chosen, rng_of(2), 20)
    assert len(draw_rows(chosen, rng_of(1), 50)) == 50 and draw_rows(PopulationSettings(), rng_of(1), 5) == []
    assert next(sessions(chosen, rng_of(1), 0, row=7))[:2] == (0, 8)


def test_a_start_behind_the_end_of_a_trace_is_noted(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "short.avt", GOOD)  # 400 s
    assert trace_note(PopulationSettings(trace=path, trace_from_hours=0.1)) == ""
    note = trace_note(PopulationSettings(trace=path, trace_from_hours=0.25))
    assert "trace_from_hours = 0.25" in note and "0.111 h: it began again 2 times" in note and "0.0278 h into" in note
    run = MeshRun(MeshSettings(nodes=2, population=PopulationSettings(trace=path, trace_from_hours=0.25)), 1)
    run.run(1.0)
    assert note in run.notes


def test_a_node_that_is_up_at_both_ends_of_the_trace_stays_up(tmp_path: Path) -> None:
    trace = read_avt(write_trace(tmp_path / "ends.avt", "a 2 0 10 30 40\nb 1 0 40\n"))
    assert [*islice(replay(trace, 0), 3)] == [(0, 10), (30, 50), (70, 90)]
    assert [*replay(trace, 1)] == [(0, math.inf)]
    assert [*replay(trace, 1, from_s=15)] == [(0, math.inf)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a 1 5 9\nb\n", "line 2"),
        ("a 1 5 9\nb x\n", "line 2"),
        ("a 1 5 9\nb 2 1 2 3\n", "line 2"),
        ("a -1\n", "line 1"),
        ("a 1 9 5\n", "line 1"),
        ("a 1 5 5\n", "line 1"),
        ("#\na 2 1 5 4 9\n", "line 2"),
        ("a 1 5 nan\n", "line 1"),
        ("a 1 5 inf\n", "line 1: a time cannot be inf .*from 0 to 10000000000"),
        ("a 1 5 1e300\n", "line 1: a time cannot be 1e300"),
        ("a 1 -5 9\n", "line 1: a time cannot be -5"),
        ("a 1 5 5.0000001\n", "line 1: .* at least 0.001 s"),
        ("a 1 5 5.5\n", "too short"),
        ("a 1 5 y\n", "line 1"),
        ("", "empty"),
        ("a 0\n", "empty"),
        ("a 1 1 2\n\xff\n", "cannot be read .*it is no plain text: a byte is 0xff"),
    ],
)
def test_a_broken_trace_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "broken.avt"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=said):
        read_avt(str(path))


def test_a_trace_that_is_not_there_or_not_compressed_is_refused(tmp_path: Path) -> None:
    text = b"a 1 0 5\nb 1 2 9\n"
    for name, data in (("zipped.avt", gzip.compress(text)), ("marked.avt", codecs.BOM_UTF8 + text)):
        (tmp_path / name).write_bytes(data)
        assert [list(row) for row in read_avt(str(tmp_path / name)).rows] == [[0, 5], [2, 9]]
    with pytest.raises(UsageError, match=r"cannot be read \(No such file"):
        read_avt(str(tmp_path / "none.avt"))
    with pytest.raises(UsageError, match="not a regular file"):
        read_avt("/dev/zero")
    path = tmp_path / "plain.avt.gz"
    path.write_text(GOOD)
    with pytest.raises(UsageError, match="cannot be read"):
        read_avt(str(path))
    path.write_bytes(gzip.compress(GOOD.encode() * 1000)[:60])
    with pytest.raises(UsageError, match="cannot be read"):
        read_avt(str(path))


def test_a_line_without_end_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "zeros.avt.gz"
    path.write_bytes(gzip.compress(b"0" * (LINE_CHARS_MAX + 9)))
    with pytest.raises(UsageError, match="a line has more than"):
        read_avt(str(path))


@pytest.mark.skipif(not SKYPE.exists(), reason="P2PC_TRACES names no folder with the trace")
def test_the_skype_trace_has_the_published_means() -> None:
    rows = [row for row in read_avt(str(SKYPE)).rows if row]
    ups = [row[place + 1] - row[place] for row in rows for place in range(0, len(row), 2)]
    downs = [row[place + 1] - row[place] for row in rows for place in range(1, len(row) - 1, 2)]
    assert statistics.mean(ups) / HOUR_S == pytest.approx(16.27, abs=0.01)
    assert statistics.mean(downs) / HOUR_S == pytest.approx(14.31, abs=0.01)


# --- machines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("project", sorted(SPEED_SIGMA))
def test_machines_have_median_speed_1_and_the_spread_of_the_project(project: str) -> None:
    chosen = msgspec.convert({"speeds": project}, PopulationSettings)
    drawn = [machine(chosen, rng_of("machine", node)) for node in range(5000)]
    assert statistics.median(one.speed for one in drawn) == pytest.approx(1.0, rel=0.06)
    whole = statistics.stdev(math.log(one.speed * one.cores) for one in drawn)
    assert whole == pytest.approx(SPEED_SIGMA[project], rel=0.05)
    mean_cores = sum(cores * share for cores, share in CORES)
    assert statistics.mean(one.cores for one in drawn) == pytest.approx(mean_cores, rel=0.05)
    assert statistics.mean(one.mem_bytes for one in drawn) / 1e9 == pytest.approx(11.4, rel=0.07)


def test_machines_can_be_alike() -> None:
    chosen = PopulationSettings(speeds="same", cores=3, mem_gib=2.0)
    drawn = [machine(chosen, rng_of(node)) for node in range(8)]
    assert {(one.speed, one.cores, one.mem_bytes) for one in drawn} == {(1.0, 3, 2 * 1024**3)}
    wide = PopulationSettings(speeds="lognormal", speed_sigma=1.5, cores=1)
    speeds = [machine(wide, rng_of("wide", node)).speed for node in range(3000)]
    assert statistics.stdev(map(math.log, speeds)) == pytest.approx(1.5, rel=0.05)
