"""The experiment `dht`: if it broke, figures about gets, puts and lookups would mean nothing."""

from __future__ import annotations

import pytest

from p2pcompute.ids import dht_id
from p2pcompute.simulation.dht_nodes import DhtNodes, grind
from p2pcompute.simulation.dht_runs import run_dht
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.result import RunResult
from p2pcompute.simulation.scenario import load_scenario, with_values
from tests.simulation.test_glossary import glossary


def run(name: str, seed: int = 1, **values: object) -> RunResult:
    small = {"nodes": 120, "asks": 20, "records": 3, **values}
    scenario = with_values(load_scenario(name), {key: str(value) for key, value in small.items()})
    result = run_dht(scenario, seed)
    assert not result.problems
    return result


def bare(result: RunResult) -> set[str]:
    return {metric.removesuffix("_p50").removesuffix("_p95").removesuffix("_max") for metric in result.metrics}


@pytest.mark.parametrize("name", ["dht-get", "dht-find", "dht-put", "dht-adversary"])
def test_each_scenario_gives_figures_that_the_glossary_explains(name: str) -> None:
    result = run(name)
    known = glossary()
    assert {"success", "latency_rtt", "messages"} <= bare(result) <= known.keys()
    assert result.metrics["success"] >= 0.95
    assert result.fired.get("hostile", 0) > 0 if name == "dht-adversary" else not result.fired


def test_records_survive_while_nodes_go_and_come() -> None:
    metrics = run("dht-keep", nodes=12, asks=10, hours=0.1, session=0.05).metrics
    assert metrics["newcomers"] > 2 and metrics["success"] == 1.0


def test_the_same_seed_gives_the_same_trace_and_another_another() -> None:
    one, again, other = run("dht-get", 5), run("dht-get", 5), run("dht-get", 6)
    assert one.trace_hash == again.trace_hash != other.trace_hash
    assert one.metrics == again.metrics


def test_gets_fail_when_all_holders_are_dead_or_nothing_gets_through() -> None:
    """The oracle of the experiment: success is not taken for granted."""
    assert run("dht-get", dead=0.995, asks=3, nodes=200).metrics["success"] < 1
    assert run("dht-get", loss=0.9, asks=5).metrics["success"] < 1


def test_dead_contacts_cost_time_and_sends_again() -> None:
    calm, hard = run("dht-find", dead=0), run("dht-find", dead=0.4)
    assert hard.metrics["latency_rtt"] > calm.metrics["latency_rtt"]
    assert hard.metrics["resent"] > calm.metrics["resent"]


def test_among_a_hundred_nodes_of_which_ten_are_dead_all_are_found_without_waiting_for_these() -> None:
    metrics = run("dht-find", nodes=100, asks=40, dead=0.1).metrics
    assert metrics["recall"] >= 0.98 and metrics["latency_rtt_p95"] < 2.0 / 0.07


def test_sybils_are_nearer_to_the_key_than_honest_nodes() -> None:
    key = dht_id(b"anything")
    with Simulation(3) as simulation:
        nodes = DhtNodes(simulation)

        async def build() -> None:
            for _ in range(50):
                await nodes.add()
            for secret in grind("3", key, 10, nodes=50):
                (await nodes.add(secret=secret)).is_hostile = True

        simulation.run(build())
        nearest = nodes.nearest(key, 20, lambda _node: True)
        assert sum(node.is_hostile for node in nearest[:12]) >= 9


def test_sybils_share_addresses_when_they_are_told_to() -> None:
    """Diversity of addresses can be studied only if the crafted nodes are really at few addresses."""
    result = run("dht-sybil", sybils=12, sybil_addresses=2, records=1)
    assert result.nodes == 120 and result.fired["hostile"] > 0


def test_in_an_open_group_one_address_gets_two_places_in_a_bucket() -> None:
    assert run("dht-sybil", sybils=30, sybil_addresses=1, records=1, open="true").metrics["crowd"] <= 2


@pytest.mark.parametrize("share", [0.3, 0.03])
def test_searches_of_whole_dhts_find_what_the_oracle_knows(share: float) -> None:
    """What many have is known of contacts, what few have is advertised."""
    result = run("index-search", nodes=150, share=share, asks=5)
    assert bare(result) <= glossary().keys()
    assert result.metrics["success"] == 1.0 and result.metrics["found"] >= min(30, share * 150 - 1)


def test_what_nobody_has_is_not_found() -> None:
    metrics = run("index-search", nodes=60, share=0, asks=3).metrics
    assert metrics["found"] == 0 and metrics["messages"] > 0


def test_upkeep_is_counted_with_headers_and_grows_with_the_group_that_comes_and_goes() -> None:
    calm, restless = (run("dht-rest", nodes=40, asks=1, hours=0.1, session=value).metrics for value in (0, 0.2))
    assert 0 < calm["upkeep_bytes_s"] < restless["upkeep_bytes_s"] < 2000
