"""`p2pcompute.map`, `sh`, `wasm` and `function`, on the executor that the process shares."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar, overload

from p2pcompute.api.completed import Completed
from p2pcompute.api.jobs import Job
from p2pcompute.api.options import TaskOptions
from p2pcompute.api.remote_function import RemoteFunction
from p2pcompute.api.shared import shared_executor
from p2pcompute.api.shell import start_commands
from p2pcompute.api.wasm import start_modules

P = ParamSpec("P")
R = TypeVar("R")


def map(fn: Callable[..., R], *iterables: Iterable[Any], **options: Any) -> Iterator[R]:
    """Call `fn` for the items of the iterables, in parallel; yield the results in their order, lazily.

    Args:
        options: `timeout`, `chunksize` and `buffersize` as for `MeshExecutor.map`, and fields of `TaskOptions`.

    Raises:
        UsageError: an option cannot mean anything.
        Exception: (while iterating) what a call raised.
    """
    how = {name: options.pop(name) for name in ("timeout", "chunksize", "buffersize") if name in options}
    executor = shared_executor()
    return (executor.with_options(**options) if options else executor).map(fn, *iterables, **how)


def sh(
    command: str | Sequence[str],
    inputs: Iterable[Any] | None = None,
    *,
    send: Sequence[str | os.PathLike[str]] = (),
    fetch: Sequence[str] = (),
    to: str | os.PathLike[str] = ".",
    name: str | None = None,
    **options: Any,
) -> Job[Completed]:
    """Run a command for each input, in parallel; the values of the job say how each ended.

    Without `inputs` it runs once, as it is.  An exit code that is not 0 raises nothing, but counts as failed: in the
    status of the job, and in `Job.failures`.

    Args:
        command: one string for the shell, or the words of a command that no shell sees.  "{}" stands for the input,
            quoted for the shell where there is one; a command without it gets the input appended.
        send: files that each command finds in its directory, under their relative names; "{}" as above.
        fetch: names or patterns of the files to bring back; "{}" as above.
        to: directory below which they are written.
        options: fields of `TaskOptions`.

    Raises:
        UsageError: the command or an option cannot mean anything, or a file cannot be read.
    """
    return start_commands(
        shared_executor(),
        command,
        inputs,
        send=send,
        fetch=fetch,
        to=to,
        options=TaskOptions().changed(**options),
        name=name,
    )


def wasm(
    module: str | os.PathLike[str] | bytes,
    inputs: Iterable[bytes] = (b"",),
    *,
    args: Sequence[str] = (),
    entry: str = "_start",
    fuel: int | None = None,
    name: str | None = None,
    **options: Any,
) -> Job[bytes]:
    """Run a WASI program for each input, in parallel; the values of the job are what each has printed.

    It reads the input from its standard input, and comes to the same bytes on every node.  Without `inputs` it runs
    once.  One that exits with another code than 0 fails: its future raises `TaskError`.

    Args:
        module: its file, or its content.
        args: its arguments, the same for all.
        entry: where it begins; WASI knows "_start" only.
        fuel: instructions that a task may execute.
        options: fields of `TaskOptions`.

    Raises:
        UsageError: it is no module, or an option cannot mean anything.
    """
    chosen = TaskOptions().changed(**options)
    return start_modules(
        shared_executor(), module, inputs, args=args, entry=entry, fuel=fuel, options=chosen, name=name
    )


@overload
def function(fn: Callable[P, R], /) -> RemoteFunction[P, R]: ...
@overload
def function(
    *, options: TaskOptions | None = ..., **changes: Any
) -> Callable[[Callable[P, R]], RemoteFunction[P, R]]: ...
def function(
    fn: Callable[P, R] | None = None, /, *, options: TaskOptions | None = None, **changes: Any
) -> RemoteFunction[P, R] | Callable[[Callable[P, R]], RemoteFunction[P, R]]:
    """Decorate a function so that it can also be called on the mesh.

    Args:
        options: how its tasks run.
        changes: fields of `TaskOptions` that differ from `options`.

    Raises:
        BadValue: an option has a value that cannot be used.
        UsageError: there is no such option.
    """
    chosen = (options or TaskOptions()).changed(**changes)
    if fn is not None:
        return RemoteFunction(fn, chosen)
    return lambda fn: RemoteFunction(fn, chosen)
