"""A daemon's API over a fake node, on a real unix socket with the real HTTP implementation."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from daemon_fake_node import FakeNode

from p2pcompute.cli.connection import Connection
from p2pcompute.daemon.app import Api, build_app
from p2pcompute.daemon.listener import Listener, bind_socket
from p2pcompute.daemon.main import StopRequests
from p2pcompute.daemon.sink import ResultsSink
from p2pcompute.host.tasks import TaskScope

T = TypeVar("T")


@dataclass
class Daemon:
    node: FakeNode
    connection: Connection
    requests: StopRequests
    sink: ResultsSink
    api: Api
    directory: Path
    errors: list[BaseException]

    async def call(self, work: Callable[[], T]) -> T:
        """Run blocking work of the command's side while the node serves."""
        return await asyncio.wait_for(asyncio.to_thread(work), 10)

    async def new_job(self, count: int = 0, *, seal: bool = False, **body: object) -> bytes:
        answer = await self.call(
            lambda: self.connection.request("POST", "/v1/jobs", {"kind": "command", "name": "test", **body})
        )
        lines = [{"argv": ["echo", str(at)], "inputs": [str(at)]} for at in range(count)]
        if lines:
            await self.call(lambda: self.connection.upload_lines(f"/v1/jobs/{answer['id']}/tasks", lines))
        if seal:
            await self.call(lambda: self.connection.request("POST", f"/v1/jobs/{answer['id']}/seal", {}))
        return bytes.fromhex(answer["id"])


async def until(condition: Callable[[], object], limit_s: float = 10.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(node: FakeNode, directory: Path) -> AsyncIterator[Daemon]:
    errors: list[BaseException] = []
    scope = TaskScope("daemon", lambda _name, error: errors.append(error))
    sink = ResultsSink(node, directory / "sinks", scope)
    requests = StopRequests()
    app, api = build_app(node, requests, sink)
    listening = bind_socket(directory / "node.sock")
    listener = Listener(app, "1.2.3")
    serving = scope.spawn(listener.serve(sockets=[listening]), "listener")
    await sink.start()
    try:
        yield Daemon(node, Connection(directory / "node.sock"), requests, sink, api, directory, errors)
    finally:
        api.job_events.close()
        listener.stop()
        await serving
        await scope.close()
        sink.close()
        listening.close()
    assert not errors
