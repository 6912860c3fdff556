"""What a job asks of nodes, and explanations, over the control socket: what scripts send and read."""

from __future__ import annotations

from typing import Any

import pytest
from daemon_kit import Daemon

from p2pcompute.errors import UsageError
from p2pcompute.node.placement import needs_of
from p2pcompute.resources.matching import Needs
from p2pcompute.trust.levels import Level


async def post(daemon: Daemon, path: str, body: dict[str, Any]) -> Any:
    return await daemon.call(lambda: daemon.connection.request("POST", path, body))


def job(terms: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    return {"kind": "command", "terms": terms or {}, "spec": spec}


async def test_what_is_asked_of_nodes_is_in_the_signed_job(daemon: Daemon) -> None:
    terms = {"require": ["has=ffmpeg"], "prefer": ["-load"], "on": ["nova"], "not_on": []}
    answer = await post(daemon, "/v1/jobs", job(terms, cpus=2, mem_bytes=1 << 30, gpus=1, disk_bytes=5))
    known = daemon.node.by_id[bytes.fromhex(answer["id"])]
    assert needs_of(known.terms, known.spec) == Needs(
        require=("has=ffmpeg",), prefer=("-load",), cpus=2, mem_bytes=1 << 30, gpus=1, disk_bytes=5
    )
    assert known.terms.on == (daemon.node.peers()[0].public_key,)


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        ({"require": ["cpus >="]}, "expression"),
        ({"require": ["cpu >= 2"]}, "expression"),
        ({"prefer": ["os"]}, "expression"),
        ({"on": ["nowhere"]}, "no-such-node"),
        ({"not_on": ["AB"]}, "no-such-node"),
        ({"on": ["nova"] * 65}, "too-many-nodes"),
    ],
)
async def test_what_no_node_could_meet_is_refused(daemon: Daemon, terms: dict[str, Any], code: str) -> None:
    for path in ("/v1/jobs", "/v1/explanation"):
        with pytest.raises(UsageError) as caught:
            await post(daemon, path, job(terms))
        assert caught.value.code == code
    assert not daemon.node.by_id


async def test_a_blocked_node_is_not_called_unknown(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has forgotten that he blocked it looks for it among the peers, where it is not."""
    peers = daemon.node.peers()
    daemon.node.set_level(peers[1].public_key, Level.BLOCKED, reason="")
    monkeypatch.setattr(daemon.node, "peers", lambda: peers[:1])
    with pytest.raises(UsageError, match="atlas is blocked here") as caught:
        await post(daemon, "/v1/jobs", job({"on": ["atlas"]}))
    assert caught.value.fix == "p2pc trust set atlas member"
    answer = await post(daemon, "/v1/jobs", job({"not_on": ["atlas"]}))
    assert daemon.node.by_id[bytes.fromhex(answer["id"])].terms.not_on == (), "it gets none anyway"


async def test_explanation_of_a_job_that_is_not_submitted(daemon: Daemon) -> None:
    document = await post(daemon, "/v1/explanation", job({"require": ["has=blender", "cpus>=8"]}, cpus=16))
    assert document["schema"] == "p2pc.explanation/1" and document["job"] is None
    assert [(node["name"], node["is_this"], node["verdict"]) for node in document["nodes"]] == [
        ("nova", True, "never"),
        ("atlas", False, "unknown"),
    ]
    assert document["nodes"][0]["reasons"][0] == {
        "code": "has",
        "verdict": "never",
        "what": "needs has=blender; not installed there",
        "fix": "install blender there",
        "passes_at": None,
    }
    assert document["would_help"][0]["flags"] == ["--cpus", "8", "--require", "cpus>=8"]
    assert document["would_help"][0]["nodes"] == ["nova"]
    assert document["flags"] == ["--cpus", "16", "--require", "has=blender", "--require", "cpus>=8"]
    assert not document["can_never_run"], "of atlas nothing is known"
    assert {name: document[name] for name in ("now", "later", "never", "unknown")} == {
        "now": 0,
        "later": 0,
        "never": 1,
        "unknown": 1,
    }


async def test_explanation_of_a_job_and_of_one_node(daemon: Daemon) -> None:
    answer = await post(daemon, "/v1/jobs", job({"require": ["os=linux"]}))

    async def get(query: str) -> Any:
        path = f"/v1/jobs/{answer['alias']}/explanation{query}"
        return await daemon.call(lambda: daemon.connection.request("GET", path))

    document = await get("")
    assert document["job"]["id"] == answer["id"]
    assert document["nodes"][0]["reasons"][0]["what"] == "needs os=linux; os is not known"
    assert [node["name"] for node in (await get("?node=atlas"))["nodes"]] == ["atlas"]
    with pytest.raises(UsageError, match="there is no node"):
        await get("?node=nowhere")
    answer = await post(daemon, "/v1/jobs", job({"require": ["cpus>=16"]}))
    assert [one["nodes"] for one in (await get("?node=nova"))["would_help"]] == [["nova"]]
    silent = await get("?node=atlas")
    assert silent["would_help"] == [], "what helps another node does not help there"
    assert "network" not in silent["not_the_cause"] and (await get(""))["would_help"]
