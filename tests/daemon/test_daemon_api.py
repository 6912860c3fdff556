"""The control API over a real unix socket: what would break for `p2pc` and for anyone with curl."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
import time
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from daemon_fake_node import FakeNode, ok
from daemon_kit import Daemon, running, until

from p2pcompute import __version__, socket_peer
from p2pcompute.daemon import listener, openapi
from p2pcompute.daemon.app import OPENAPI_FILE, Api
from p2pcompute.daemon.calls import CALLS
from p2pcompute.daemon.uploads import FileTaker
from p2pcompute.errors import NodeUnavailable, P2pcError, StoreError, TrustError, UsageError
from p2pcompute.execution.spec import decode_payload
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.runs import Outcome, OutcomeStatus, OutputFile
from p2pcompute.limits import API_BODY_BYTES_MAX, INLINE_BYTES_MAX, TASK_PAYLOAD_BYTES_MAX, UPLOAD_BATCH_MAX


async def raw(daemon: Daemon, request: bytes) -> bytes:
    """Send bytes as they are, return everything that comes back."""
    reader, writer = await asyncio.open_unix_connection(daemon.connection.path)
    writer.write(request)
    await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    return answer


async def test_status_and_peers_have_the_documented_shape(daemon: Daemon) -> None:
    """Scripts read these fields."""
    status = await daemon.call(lambda: daemon.connection.request("GET", "/v1/status"))
    assert status["schema"] == "p2pc.status/1"
    assert status["node"]["name"] == "nova" and status["node"]["pid"] == os.getpid()
    assert status["node"]["short_id"] == status["node"]["id"][:9]
    assert status["node"]["listening"] == "loopback" and status["node"]["protocol"] == [1, 1]
    assert status["slots"] == {"total": 8, "busy": 0}
    assert status["dht"] == {
        "contacts": 1,
        "first_contact_s": 0.25,
        "last_contact_s": None,
        "rtt_s": None,
        "datagrams_received": 0,
        "requests_sent": 0,
        "requests_timed_out": 0,
        "lookups": 2,
        "lookup_requests": 0,
        "lookup_hops": 0,
        "role": "server",
        "index": "unused",
    }
    peers = await daemon.call(lambda: daemon.connection.request("GET", "/v1/peers?nearby=1"))
    assert [peer["state"] for peer in peers["items"]] == ["self", "not seen"]
    assert peers["nearby"][0]["name"] == "studio"
    plain = await daemon.call(lambda: daemon.connection.request("GET", "/v1/peers"))
    assert "nearby" not in plain


async def test_every_answer_carries_build_and_protocol(daemon: Daemon) -> None:
    """A command must be able to tell that the node is of another build."""
    answer = await raw(daemon, b"GET /v1/version HTTP/1.1\r\nhost: p2pc\r\nconnection: close\r\n\r\n")
    assert b"p2pc-version: 1.2.3" in answer and b"p2pc-protocol: 1-1" in answer
    assert json.loads(answer.split(b"\r\n\r\n")[1])["version"] == __version__


async def test_job_from_submission_to_result(daemon: Daemon) -> None:
    """The way of every `p2pc run`."""
    job_id = await daemon.new_job(3, seal=True, terms={"retries": 1, "timeout_s": 5}, note={"tag": True})
    job = daemon.node.by_id[job_id]
    assert job.terms.retries == 1 and job.spec.timeout_s == 5 and job.terms.created_ms > 0
    daemon.node.end(job_id, 0, ok(b"zero\n"))
    daemon.node.end(job_id, 1, Outcome(status=OutcomeStatus.FAILED, exit_code=3, stderr=b"no\n"))
    document = await daemon.call(lambda: daemon.connection.request("GET", "/v1/jobs/last"))
    assert document["note"] == {"tag": True} and document["kind"] == "command" and document["total"] == 3
    assert document["submitted"] == "2023-11-14T22:13:20.250000Z"
    tasks = await daemon.call(lambda: daemon.connection.request("GET", f"/v1/jobs/{job.alias}/tasks?state=failed"))
    assert [task["index"] for task in tasks["items"]] == [1] and tasks["items"][0]["exit_code"] == 3
    assert tasks["items"][0]["command"] == "echo 1" and tasks["items"][0]["node"] == "nova"
    page = await daemon.call(lambda: daemon.connection.request("GET", "/v1/jobs/last/tasks?limit=2"))
    assert page["next"] == 1
    rest = await daemon.call(lambda: daemon.connection.request("GET", "/v1/jobs/last/tasks?limit=2&after=1"))
    assert [task["index"] for task in rest["items"]] == [2] and rest["next"] is None

    def read() -> bytes:
        with daemon.connection.download("/v1/jobs/last/tasks/0/stdout") as content:
            return content.read()

    assert await daemon.call(read) == b"zero\n"
    with pytest.raises(UsageError) as caught:
        await daemon.call(lambda: daemon.connection.download("/v1/jobs/last/tasks/2/stdout"))
    assert caught.value.code == "not-finished"
    with pytest.raises(UsageError) as caught:
        await daemon.call(lambda: daemon.connection.request("GET", "/v1/jobs/last/tasks/3"))
    assert caught.value.code == "no-task"


async def test_large_content_is_streamed_whole(daemon: Daemon, tmp_path: Path) -> None:
    """A 5 MiB file that a task made comes back byte for byte with its permission bits."""
    content = os.urandom(5 * 1024 * 1024)
    ref = await daemon.node.blobs.put(content)
    job_id = await daemon.new_job(1)
    daemon.node.end(job_id, 0, ok(files=(OutputFile("out/a b.png", ref.digest, ref.size, 0o750),)))

    def read() -> tuple[bytes, int]:
        with daemon.connection.download("/v1/jobs/last/tasks/0/files/out/a%20b.png") as download:
            return b"".join(download), download.mode

    assert await daemon.call(read) == (content, 0o750)
    with pytest.raises(UsageError, match="no file"):
        await daemon.call(lambda: daemon.connection.download("/v1/jobs/last/tasks/0/files/other"))
    await daemon.node.blobs.delete([BlobRef(ref.digest, ref.size)])
    with pytest.raises(P2pcError) as caught:
        await daemon.call(lambda: daemon.connection.download("/v1/jobs/last/tasks/0/files/out/a%20b.png"))
    assert caught.value.code == "no-file"


REFUSED = [
    ("GET", "/v1/nothing", b"", 404, "no-call"),
    ("DELETE", "/v1/status", b"", 405, "no-call"),
    ("GET", "/v1/jobs/zzzz", b"", 404, "no-job"),
    ("POST", "/v1/jobs", b"{", 400, "bad-request"),
    ("POST", "/v1/jobs", b'{"kind":"command","surprise":1}', 400, "bad-request"),
    ("POST", "/v1/jobs", b'{"kind":"machine"}', 400, "kind"),
    ("POST", "/v1/jobs", b'{"kind":"container"}', 400, "bad-request"),
    ("POST", "/v1/jobs", b'{"kind":"wasm"}', 400, "bad-request"),
    ("POST", "/v1/jobs", b'{"kind":"command","spec":{"fuel":9}}', 400, "fuel"),
    ("POST", "/v1/jobs", b'{"kind":"simulated"}', 400, "kind"),
    ("POST", "/v1/jobs", b'{"kind":"function"}', 400, "bad-request"),
    ("POST", "/v1/jobs", b'{"kind":"command","terms":{"retries":-1}}', 400, "bad-request"),
    ("POST", "/v1/jobs", b'{"kind":"command","terms":{"halt":"never ever"}}', 400, "halt"),
    ("POST", "/v1/jobs", b'{"kind":"command","spec":{"cpus":1e400}}', 400, "bad-request"),
    ("POST", "/v1/invite", b'{"uses":0}', 400, "bad-request"),
    ("POST", "/v1/join", b'{"token":"void"}', 403, "refused"),
    ("GET", "/v1/jobs?limit=many", b"", 400, "bad-request"),
    ("GET", "/v1/jobs?state=lost", b"", 400, "bad-request"),
    ("POST", "/v1/prune", b'{"older_than_s":-1}', 400, "bad-request"),
]


async def test_errors_are_documents(daemon: Daemon) -> None:
    """A refusal always says what and which, never a traceback or an HTML page."""
    for method, path, body, status, code in REFUSED:
        answer = await raw(
            daemon,
            b"%s %s HTTP/1.1\r\nhost: p2pc\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s"
            % (method.encode(), path.encode(), len(body), body),
        )
        head, document = answer.split(b"\r\n\r\n", 1)
        found = json.loads(document)
        assert int(head.split()[1]) == status, (path, body)
        assert found["schema"] == "p2pc.error/1" and found["code"] == code and found["what"], (path, body)


async def test_body_beyond_the_limit_is_refused_unread(daemon: Daemon) -> None:
    """A huge body would otherwise be held in memory."""
    head = b"POST /v1/jobs HTTP/1.1\r\nhost: p2pc\r\ncontent-length: %d\r\n\r\n" % (API_BODY_BYTES_MAX + 1)
    assert (await raw(daemon, head + b"x" * 1000)).startswith(b"HTTP/1.1 413")


async def test_bug_is_answered_and_the_node_lives(daemon: Daemon) -> None:
    """An exception of ours must not take the connection, or the node, with it."""
    daemon.node.bug = RuntimeError("boom")
    with pytest.raises(P2pcError) as caught:
        await daemon.call(lambda: daemon.connection.request("GET", "/v1/status"))
    assert caught.value.code == "bug" and "boom" in caught.value.why
    daemon.node.bug = StoreError("the disk is full", "no space left", "make room", code="disk-full")
    with pytest.raises(StoreError, match="the disk is full"):
        await daemon.call(lambda: daemon.connection.request("GET", "/v1/status"))
    daemon.node.bug = None
    await daemon.call(lambda: daemon.connection.request("GET", "/v1/status"))


async def test_group_calls(daemon: Daemon) -> None:
    """invite, join, leave, and a refused token keeps its class on the way."""
    made = await daemon.call(lambda: daemon.connection.request("POST", "/v1/invite", {"uses": 2, "expires_s": 60}))
    assert made["token"] == "p2pc1-token" and made["uses"] == 2 and made["expires"].endswith("Z")
    joined = await daemon.call(lambda: daemon.connection.request("POST", "/v1/join", {"token": "t", "name": None}))
    assert joined["group"] == "home-lab" and joined["inviter"] == "nova"
    with pytest.raises(TrustError, match="did not accept"):
        await daemon.call(lambda: daemon.connection.request("POST", "/v1/join", {"token": "void"}))
    await daemon.call(lambda: daemon.connection.request("POST", "/v1/leave", {}))
    assert daemon.node.is_alone


async def test_trust_calls(daemon: Daemon) -> None:
    """Levels and roles are words; what is none is refused before the node hears of it."""

    async def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        return await daemon.call(lambda: daemon.connection.request("POST", path, body))

    (item,) = (await daemon.call(lambda: daemon.connection.request("GET", "/v1/trust")))["items"]
    assert item["level"] == "member" and item["roles"] == ["submit", "work", "invite"] and not item["removed"]
    blocked = await post(f"/v1/trust/{item['id']}", {"level": "blocked", "reason": "loud"})
    assert blocked["level"] == "blocked" and blocked["reason"] == "loud"
    assert (await post(f"/v1/members/{item['id']}/roles", {"roles": ["work"]}))["roles"] == ["work"]
    assert (await post(f"/v1/members/{item['id']}/remove", {}))["removed"]
    for path, body in (
        (f"/v1/trust/{item['id']}", {"level": "loved"}),
        (f"/v1/members/{item['id']}/roles", {"roles": ["king"]}),
        ("/v1/trust/AAAA-AAAA", {"level": "member"}),
    ):
        with pytest.raises(UsageError):
            await post(path, body)


async def test_cancel_retry_prune_shutdown(daemon: Daemon) -> None:
    """The verbs reach the node with what was asked."""
    job_id = await daemon.new_job(3, seal=True)
    daemon.node.end(job_id, 0, Outcome(status=OutcomeStatus.FAILED, exit_code=1))
    document = await daemon.call(
        lambda: daemon.connection.request("POST", "/v1/jobs/last/cancel", {"indices": [2], "now": True})
    )
    assert document["cancelled"] == 1
    with pytest.raises(UsageError) as caught:
        await daemon.call(lambda: daemon.connection.request("POST", "/v1/jobs/last/cancel", {"indices": [7]}))
    assert caught.value.code == "no-task"
    assert (await daemon.call(lambda: daemon.connection.request("POST", "/v1/jobs/last/retry", {})))["count"] == 1
    report = await daemon.call(lambda: daemon.connection.request("POST", "/v1/prune", {"older_than_s": 5}))
    assert report == {"jobs": 1, "freed_bytes": 1000}
    await daemon.call(lambda: daemon.connection.request("POST", "/v1/shutdown", {"drain": True}))
    assert daemon.requests.is_requested and not daemon.requests.is_now
    await daemon.call(lambda: daemon.connection.request("POST", "/v1/shutdown", {}))
    assert daemon.requests.is_now, "a second request means now"


async def test_jobs_lists_the_open_ones_unless_asked(daemon: Daemon) -> None:
    """`p2pc jobs` shows what is going on, `--all` the past."""
    old = await daemon.new_job(1, seal=True)
    daemon.node.end(old, 0, ok())
    new = await daemon.new_job(1)
    items = (await daemon.call(lambda: daemon.connection.request("GET", "/v1/jobs")))["items"]
    assert [item["id"] for item in items] == [new.hex()]
    items = (await daemon.call(lambda: daemon.connection.request("GET", "/v1/jobs?all=1")))["items"]
    assert [item["id"] for item in items] == [new.hex(), old.hex()]
    items = (await daemon.call(lambda: daemon.connection.request("GET", "/v1/jobs?state=done")))["items"]
    assert [item["id"] for item in items] == [old.hex()]


# --- uploads --------------------------------------------------------------------------------------


async def test_files_are_taken_on_the_nodes_side(daemon: Daemon, tmp_path: Path) -> None:
    """Sent files and folders are in the blob store when the upload is answered; the submitter may delete them."""
    (tmp_path / "folder/inner").mkdir(parents=True)
    (tmp_path / "folder/inner/x.txt").write_bytes(b"x")
    (tmp_path / "tool.sh").write_bytes(b"#!/bin/sh\n")
    (tmp_path / "tool.sh").chmod(0o755)
    (tmp_path / "in.txt").write_bytes(b"stdin")
    job_id = await daemon.new_job(spec={"share": [{"path": str(tmp_path / "folder"), "name": "data"}]})
    line = {
        "argv": ["./tool.sh"],
        "send": [{"path": str(tmp_path / "tool.sh"), "name": "tool.sh"}],
        "stdin_path": str(tmp_path / "in.txt"),
        "fetch": ["*.png"],
        "key": "00ff",
        "inputs": ["a"],
    }
    await daemon.call(lambda: daemon.connection.upload_lines("/v1/jobs/last/tasks", [line, line]))
    job = daemon.node.by_id[job_id]
    assert [file.name for file in job.spec.share] == ["data/inner/x.txt"]
    payload = decode_payload(job.tasks[0].payload)
    assert payload.send[0].mode == 0o755 and payload.key == b"\x00\xff" and payload.fetch == ("*.png",)
    (tmp_path / "tool.sh").unlink()
    assert await daemon.node.blobs.read(payload.send[0].blob) == b"#!/bin/sh\n"
    assert payload.stdin_blob is not None and await daemon.node.blobs.read(payload.stdin_blob) == b"stdin"


async def test_large_arguments_become_blobs(daemon: Daemon) -> None:
    """Arguments beyond the inline limit would not fit a grant."""
    job_id = await daemon.new_job()
    import base64

    args = os.urandom(INLINE_BYTES_MAX + 1)
    answer = await daemon.call(
        lambda: daemon.connection.request(
            "POST", "/v1/jobs", {"kind": "function", "spec": {"code_b64": base64.b64encode(b"code").decode()}}
        )
    )
    lines = [{"args_b64": base64.b64encode(args).decode()}, {"args_b64": base64.b64encode(b"small").decode()}]
    await daemon.call(lambda: daemon.connection.upload_lines(f"/v1/jobs/{answer['id']}/tasks", lines))
    job = daemon.node.by_id[bytes.fromhex(answer["id"])]
    assert job.terms.python is not None, "pickled code must not run on another Python minor"
    large, small = (decode_payload(task.payload) for task in job.tasks)
    assert large.args == b"" and large.args_blob is not None and await daemon.node.blobs.read(large.args_blob) == args
    assert small.args == b"small" and small.args_blob is None
    assert job_id != bytes.fromhex(answer["id"])


BAD_LINES = [
    (b"{not json}", "bad-request"),
    (b'{"argv":[]}', "bad-request"),
    (b'{"argv":["a"],"unknown":1}', "bad-request"),
    (b'{"argv":["cat"],"send":[{"path":"/no/such/file","name":"f"}]}', "missing-file"),
    (b'{"argv":["cat"],"send":[{"path":"relative","name":"f"}]}', "bad-request"),
    (b'{"argv":["cat"],"send":[{"path":"/etc/hostname","name":"../f"}]}', "bad-name"),
    (b'{"argv":["cat"],"stdin_path":"/dev/zero"}', "not-a-file"),
    (b'{"argv":["cat"],"fetch":["/etc/passwd"]}', "bad-name"),
    (b'{"argv":["a\\u0000b"]}', "bad-request"),
    (b'{"argv":["a"],"key":"xyz"}', "bad-request"),
    (b'{"argv":["' + b"x" * (TASK_PAYLOAD_BYTES_MAX + 1) + b'"]}', "too-large"),
]


async def test_bad_line_is_named_and_nothing_of_it_is_added(daemon: Daemon) -> None:
    """The lines before it are stored, the answer says how many, and the job can go on from there."""
    for bad, code in BAD_LINES:
        job_id = await daemon.new_job()
        lines = [b'{"argv":["one"]}', b"", b'{"argv":["two"]}', bad, b'{"argv":["never"]}']
        with pytest.raises(UsageError) as caught:
            await daemon.call(partial(daemon.connection.upload_lines, "/v1/jobs/last/tasks", lines))
        error = caught.value
        assert error.code == code and error.what.startswith("line 4: "), bad[:60]
        assert (error.line, error.count, error.first) == (4, 2, 0)  # type: ignore[attr-defined]
        tasks = daemon.node.by_id[job_id].tasks
        assert [decode_payload(task.payload).argv for task in tasks] == [("one",), ("two",)]


async def test_upload_waits_for_the_node(daemon: Daemon) -> None:
    """Back-pressure: a lazy source is not read far ahead of what the node has stored."""
    daemon.node.gate = asyncio.Event()
    job_id = await daemon.new_job()
    taken = 0

    def source() -> object:
        nonlocal taken
        for at in range(30_000):
            taken += 1
            yield {"argv": ["echo", "x" * 100, str(at)]}

    upload = asyncio.create_task(
        asyncio.to_thread(daemon.connection.upload_lines, "/v1/jobs/last/tasks", source())  # type: ignore[arg-type]
    )
    await until(lambda: taken > 1000)
    before = -1
    while before != taken:  # until the source stands still
        before = taken
        await asyncio.sleep(0.1)
    assert taken < 20_000 and not daemon.node.by_id[job_id].tasks
    daemon.node.gate.set()
    answer = await asyncio.wait_for(upload, 20)
    assert answer == {"first": 0, "count": 30_000}
    job = daemon.node.by_id[job_id]
    assert max(job.batches) <= UPLOAD_BATCH_MAX and len(job.tasks) == 30_000
    assert decode_payload(job.tasks[-1].payload).argv[2] == "29999"


async def test_refused_upload_is_not_read_to_its_end(daemon: Daemon) -> None:
    """After a bad line the source is left alone: it may be endless."""
    await daemon.new_job()
    taken = 0

    def source() -> object:
        nonlocal taken
        yield b"{bad}"
        while True:
            taken += 1
            yield {"argv": ["echo", "x" * 100]}

    with pytest.raises(UsageError, match="line 1"):
        await daemon.call(
            lambda: daemon.connection.upload_lines("/v1/jobs/last/tasks", source())  # type: ignore[arg-type]
        )
    assert taken


async def test_slow_source_is_not_held_back(daemon: Daemon) -> None:
    """`tail -f | p2pc run` must start the task of each line as it comes."""
    job_id = await daemon.new_job()
    go = asyncio.Event()
    loop = asyncio.get_running_loop()

    def source() -> object:
        yield {"argv": ["first"]}
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(10)
        yield {"argv": ["second"]}

    upload = asyncio.create_task(
        asyncio.to_thread(daemon.connection.upload_lines, "/v1/jobs/last/tasks", source())  # type: ignore[arg-type]
    )
    await until(lambda: len(daemon.node.by_id[job_id].tasks) == 1)
    go.set()
    assert (await asyncio.wait_for(upload, 10))["count"] == 2


async def test_failing_source_keeps_its_error(daemon: Daemon) -> None:
    """An unreadable input file is not "no node is running"."""
    await daemon.new_job()

    def source() -> object:
        yield {"argv": ["first"]}
        raise FileNotFoundError(2, "No such file", "inputs.txt")

    with pytest.raises(FileNotFoundError, match=r"inputs\.txt"):
        await daemon.call(
            lambda: daemon.connection.upload_lines("/v1/jobs/last/tasks", source())  # type: ignore[arg-type]
        )


async def test_cut_upload_leaves_whole_tasks_and_goes_on(daemon: Daemon) -> None:
    """A submitter that dies in the middle of a line adds no half task; another may continue without doubles."""
    job_id = await daemon.new_job()
    _, writer = await asyncio.open_unix_connection(daemon.connection.path)
    part = b'{"argv":["one"]}\n{"argv":["two"]}\n{"argv":["thr'
    writer.write(
        b"POST /v1/jobs/last/tasks HTTP/1.1\r\nhost: p2pc\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n"
        % (len(part), part)
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    job = daemon.node.by_id[job_id]
    await until(lambda: len(job.tasks) == 2)
    added = (await daemon.call(lambda: daemon.connection.request("GET", "/v1/jobs/last")))["added"]
    with pytest.raises(UsageError) as caught:
        await daemon.call(lambda: daemon.connection.upload_lines("/v1/jobs/last/tasks?at=0", [{"argv": ["one"]}]))
    assert caught.value.code == "moved"
    lines = [{"argv": ["three"]}]
    await daemon.call(lambda: daemon.connection.upload_lines(f"/v1/jobs/last/tasks?at={added}", lines))
    assert [decode_payload(task.payload).argv[0] for task in job.tasks] == ["one", "two", "three"]


async def test_two_uploads_to_one_job_do_not_mix(daemon: Daemon) -> None:
    """`first` and `count` describe one run of indices."""
    job_id = await daemon.new_job()
    answers = await asyncio.gather(
        *(
            daemon.call(
                lambda name=name: daemon.connection.upload_lines(  # type: ignore[misc]
                    "/v1/jobs/last/tasks", [{"argv": [name]} for _ in range(1200)]
                )
            )
            for name in ("a", "b")
        )
    )
    assert sorted(answer["first"] for answer in answers) == [0, 1200]
    names = [decode_payload(task.payload).argv[0] for task in daemon.node.by_id[job_id].tasks]
    assert len(set(names[:1200])) == 1 and len(set(names[1200:])) == 1


async def test_sealed_job_takes_no_tasks(daemon: Daemon) -> None:
    """409, not a silent loss."""
    await daemon.new_job(1, seal=True)
    with pytest.raises(UsageError) as caught:
        await daemon.call(lambda: daemon.connection.upload_lines("/v1/jobs/last/tasks", [{"argv": ["late"]}]))
    assert caught.value.code == "job-sealed"


# --- the document ---------------------------------------------------------------------------------


def test_shipped_document_is_the_table() -> None:
    """A call that is not described, or a description of nothing."""
    assert OPENAPI_FILE.read_text() == openapi.render(), "python -m p2pcompute.daemon.openapi > openapi.json"
    document = json.loads(OPENAPI_FILE.read_text())
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert len(described) == len(CALLS)
    for call in CALLS:
        assert callable(getattr(Api, call.name))


async def test_document_is_served(daemon: Daemon) -> None:
    """Clients generate from it."""
    document = await daemon.call(lambda: daemon.connection.request("GET", "/v1/openapi.json"))
    assert document["openapi"].startswith("3.1")


async def test_keep_alive_serves_many_requests(daemon: Daemon) -> None:
    """curl and browsers reuse a connection."""

    def talk() -> int:
        link = http.client.HTTPConnection("p2pc", timeout=10)
        with socket.socket(socket.AF_UNIX) as link.sock:
            link.sock.connect(daemon.connection.path)
            count = 0
            for _ in range(3):
                link.request("GET", "/v1/version")
                count += bool(link.getresponse().read())
            return count

    assert await daemon.call(talk) == 3


async def test_a_submission_that_is_repeated_makes_one_job(tmp_path: Path) -> None:
    """Broken: a lost answer leaves a job without tasks, which keeps the place of its results from the second."""
    node = FakeNode(tmp_path)
    body = {"kind": "command", "request": "ab" * 16, "results": {"dir": str(tmp_path / "out")}}

    def submit(daemon: Daemon, **more: object) -> dict[str, Any]:
        return daemon.connection.request("POST", "/v1/jobs", {**body, **more})

    async with running(node, tmp_path) as daemon:
        first, second = await asyncio.gather(*(daemon.call(lambda: submit(daemon)) for _ in range(2)))
        assert first == second and len(node.by_id) == 1
        with pytest.raises(UsageError, match="characters"):
            await daemon.call(lambda: submit(daemon, request="x" * 65))
    async with running(node, tmp_path) as daemon:  # it is kept with the job
        assert await daemon.call(lambda: submit(daemon)) == first
        other = await daemon.call(lambda: submit(daemon, request="cd" * 16, results=None))
        assert other["id"] != first["id"] and len(node.by_id) == 2
        node.by_id.clear()  # pruned
        await daemon.call(lambda: submit(daemon, results=None))
        assert len(node.by_id) == 1
    await node.close()


async def test_a_file_that_has_just_changed_is_read_again(daemon: Daemon, tmp_path: Path) -> None:
    """Broken: what was written within one step of the file system's clock goes along as it was before."""
    place = tmp_path / "in"
    wall = time.time()
    taker = FileTaker(daemon.node.blobs, lambda: wall)
    reads = []
    for text in ("1", "2", "2"):
        place.write_text(text)
        os.utime(place, (wall, wall))
        reads.append((await taker.take(str(place)))[0])
    assert reads[0] != reads[1] == reads[2]
    assert not taker._known
    wall += 60.0
    await taker.take(str(place))
    assert len(taker._known) == 1, "one that has settled is read once"


def _asked(path: str) -> bytes:
    """Ask a node for its version on a connection of one's own, and return all that it answers."""
    with socket_peer.connect(path, 10) as connection:
        connection.settimeout(10)
        connection.sendall(b"GET /v1/version HTTP/1.1\r\nhost: p2pc\r\nconnection: close\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(65536), b""))


async def test_many_who_ask_at_once_wait_for_their_turn(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts that start a hundred commands at once see some of them fail."""
    monkeypatch.setattr(listener, "API_CONNECTIONS_MAX", 4)
    with futures.ThreadPoolExecutor(40) as threads:
        answers = await daemon.call(lambda: list(threads.map(_asked, [daemon.connection.path] * 40)))
    assert [answer for answer in answers if not answer.startswith(b"HTTP/1.1 200")] == []


async def test_who_waits_in_vain_is_told_why(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """People restart a node that is only busy."""
    monkeypatch.setattr(listener, "API_CONNECTIONS_MAX", 2)
    monkeypatch.setattr(listener, "API_WAIT_S_MAX", 0.05)
    with contextlib.ExitStack() as idle:
        for _ in range(2):
            idle.enter_context(await daemon.call(lambda: socket_peer.connect(daemon.connection.path, 10)))
        with pytest.raises(NodeUnavailable, match="too many programs") as caught:
            await daemon.call(lambda: daemon.connection.request("GET", "/v1/version"))
        assert caught.value.code == "busy"
    assert await daemon.call(lambda: daemon.connection.request("GET", "/v1/version"))
