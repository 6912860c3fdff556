"""Where machines are and how far apart: the distributions that are promised, files, errors."""

from __future__ import annotations

import os
import random
import statistics
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.errors import UsageError
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.latency import (
    LATENCIES,
    REGIONS,
    LatencyModel,
    Spot,
    draw_key,
    latency_model,
    pair_hash,
    read_coordinates,
)
from p2pcompute.simulation.network import NetworkSettings


def spots(model: LatencyModel, count: int) -> list[Spot]:
    rngs = [random.Random(f"test:{number}") for number in range(count)]
    return [model.place(rng, draw_key(rng)) for rng in rngs]


def round_trips_ms(choice: str, *, noise: float = 0.0, count: int = 400) -> list[float]:
    model = latency_model(choice, median_s=0.035, sigma=0.6, noise=noise)
    places = spots(model, count)
    return [2000 * model.delay_s(one, other) for n, one in enumerate(places) for other in places[:n]]


def quantiles(values: list[float]) -> list[float]:
    """At 5, 10, 25, 50, 75, 90 and 95 %."""
    twentieths = statistics.quantiles(values, n=20)
    return [twentieths[index] for index in (0, 1, 4, 9, 14, 17, 18)]


@pytest.mark.parametrize(
    ("choice", "measured"),
    [("king", [39, 51, 87, 161, 240, 337, 406]), ("meridian", [39, 51, 78, 117, 176, 319, 446])],
)
def test_presets_are_like_what_was_measured(choice: str, measured: list[float]) -> None:
    """If it broke: studies on "king" say nothing about the Internet of the King data set."""
    for found, expected in zip(quantiles(round_trips_ms(choice, count=1000)), measured, strict=True):
        assert found == pytest.approx(expected, rel=0.15)


def violations(choice: str, noise: float) -> float:
    """Share of random triples that violate the triangle inequality."""
    model = latency_model(choice, median_s=0.035, sigma=0.6, noise=noise)
    places, rng, count = spots(model, 300), random.Random(1), 5000
    found = 0
    for _ in range(count):
        one, two, three = rng.sample(places, 3)
        sides = sorted((model.delay_s(one, two), model.delay_s(two, three), model.delay_s(one, three)))
        found += sides[2] > sides[0] + sides[1] + 1e-12
    return found / count


def test_noise_violates_the_triangle_inequality_as_often_as_on_planetlab() -> None:
    """If it broke: relays never pay, or always."""
    assert violations("king", 0.0) == 0
    assert 0.03 < violations("king", NetworkSettings().noise) < 0.10
    assert 0.03 < violations("meridian", NetworkSettings().noise) < 0.10


def test_regions() -> None:
    """If it broke: the table is not symmetric, the shares are no shares, or a region is nobody's."""
    assert sum(region.share for region in REGIONS) == pytest.approx(1)
    assert [len(region.rtt_ms) for region in REGIONS] == [1 + number for number in range(len(REGIONS))]
    model = latency_model("regions", median_s=1, sigma=1, noise=0)
    places = spots(model, 2000)
    europe = [spot for spot in places if REGIONS[spot.region].name == "europe"]
    assert len(europe) / len(places) == pytest.approx(0.32, abs=0.04)
    sydney = next(spot for spot in places if REGIONS[spot.region].name == "oceania")
    # 270 ms between the regions, and two access lines of about 6 ms each way.
    assert statistics.median(2000 * model.delay_s(spot, sydney) for spot in europe) == pytest.approx(295, rel=0.1)


@given(one=st.integers(0, (1 << 29) - 1), other=st.integers(0, (1 << 29) - 1))
def test_the_hash_of_a_pair_is_symmetric_and_bounded(one: int, other: int) -> None:
    """If it broke: a path is longer in one direction, or a delay cannot be found."""
    first, second = Spot(one * 2 + 1), Spot(other * 2 + 1)
    assert 0 <= pair_hash(first, second) == pair_hash(second, first) < 1024


def test_hashes_of_pairs_are_spread() -> None:
    """If it broke: noise is no noise."""
    rng = random.Random(1)
    keys = [Spot(draw_key(rng)) for _ in range(400)]
    counts = [0] * 1024
    for number, one in enumerate(keys):
        for other in keys[:number]:
            counts[pair_hash(one, other)] += 1
    mean = sum(counts) / 1024
    # Chi-squared with 1,023 degrees of freedom: mean 1,023, standard deviation 45.
    assert 800 < sum((count - mean) ** 2 / mean for count in counts) < 1250


def test_a_machine_is_where_it_is_whatever_else_there_is() -> None:
    """If it broke: one more node moves all others, and runs cannot be compared."""
    for latency in LATENCIES:
        settings = NetworkSettings(latency=latency)
        with Simulation(3, model=settings) as few, Simulation(3, model=settings) as many:
            ours = [few.add_host().machine for _ in range(4)]
            theirs = [many.add_host().machine for _ in range(9)]
            assert [machine.spot for machine in ours] == [machine.spot for machine in theirs[:4]]
            delay_s = few.network.base_delay_s(ours[1], ours[3])
            assert delay_s == many.network.base_delay_s(theirs[1], theirs[3]) > 0


def test_machines_of_one_lan_are_at_one_place() -> None:
    """If it broke: two computers in one room are 100 ms apart, or all pairs of a LAN are the same."""
    with Simulation(1, model=NetworkSettings(latency="king", noise=0)) as simulation:
        home = [simulation.add_host(lan="home").machine for _ in range(5)]
        far = simulation.add_host().machine
        network = simulation.network
        near = {network.base_delay_s(one, other) for n, one in enumerate(home) for other in home[:n]}
        assert len(near) > 5 and max(near) < 0.002
        assert len({network.base_delay_s(one, far) for one in home}) == 1


def test_memory_grows_with_the_machines_not_with_their_pairs() -> None:
    """If it broke: 10,000 nodes do not fit."""
    with Simulation(1, model=NetworkSettings(latency="king")) as simulation:
        machines = [simulation.network.add_machine() for _ in range(200)]
        tracemalloc.start()
        try:
            for one in machines:
                for other in machines:
                    simulation.network.base_delay_s(one, other)
            assert tracemalloc.get_traced_memory()[0] < 20_000
        finally:
            tracemalloc.stop()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_of_coordinates(tmp_path: Path) -> None:
    """If it broke: measured latencies cannot be used."""
    path = write(tmp_path / "two.syscoord", "# comment\n\n0 0 0 h 1\n1 30.0 40.0 h -2.5\n")
    assert [tuple(each) for each in read_coordinates(path)] == [(0, 0, 1), (30, 40, 2.5)]
    with Simulation(1, model=NetworkSettings(latency=str(path), noise=0)) as simulation:
        machines = [simulation.add_host().machine for _ in range(12)]
        delays = {
            round(1000 * simulation.network.base_delay_s(one, other), 6)
            for n, one in enumerate(machines)
            for other in machines[:n]
        }
        assert delays == {2, 5, 53.5}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0 1 2 h 3\n1 2 h 3\n", "line 2"),
        ("0 1 2 x 3\n", "line 1"),
        ("0 1 2 h 3\n1 nine 2 h 3\n", "line 2.*nine"),
        ("0 1 2 h 3\n1 nan 2 h 3\n", "line 2"),
        ("0 1e9 2 h 3\n", "line 1.*100 s"),
        ("# nothing\n", "0 coordinates"),
        ("0 1 2 h 3\n", "1 coordinates"),
    ],
)
def test_a_broken_file_of_coordinates_is_refused(tmp_path: Path, text: str, why: str) -> None:
    """If it broke: a typing error becomes a silent wrong study, or a traceback."""
    with pytest.raises(UsageError, match=why):
        read_coordinates(write(tmp_path / "broken.syscoord", text))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    """If it broke: a mistyped model is found in the middle of a study."""
    with pytest.raises(ValueError, match="lan, lognormal, king, meridian, regions"):
        NetworkSettings(latency="kong")
    with pytest.raises(UsageError, match=r"missing\.syscoord cannot be read \(No such file"):
        Simulation(1, model=NetworkSettings(latency=str(tmp_path / "missing.syscoord")))
    (tmp_path / "binary.syscoord").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        read_coordinates(tmp_path / "binary.syscoord")
    os.mkfifo(tmp_path / "pipe.syscoord")
    with pytest.raises(UsageError, match="not a regular file"):  # it would be waited for, for ever
        read_coordinates(tmp_path / "pipe.syscoord")
