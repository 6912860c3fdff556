"""The names and parameters that programs are written against."""

from __future__ import annotations

import concurrent.futures as cf
import dataclasses
import inspect
import subprocess
import sys
from typing import Any

import p2pcompute

CALLS = """
AsyncMeshExecutor.map(self, fn, *iterables, ordered=True, chunksize=0, buffersize=None)
AsyncMeshExecutor.run(self, fn, /, *args, **kwargs)
Job.as_completed(self, *, timeout=None)
Job.cancel(self, *, now=False)
Job.explain(self)
Job.failures(self)
Job.plot(self, kind='report', *, path=None)
Job.results(self, *, errors='raise', timeout=None)
Job.retry_failed(self)
Job.save(self, directory)
Job.to_pandas(self)
Job.wait(self, timeout=None, *, progress=None)
KeptJob.cancel(self, *, now=False)
KeptJob.explain(self)
KeptJob.results(self, *, errors='raise', timeout=None)
KeptJob.retry_failed(self)
KeptJob.save(self, directory)
KeptJob.wait(self, timeout=None, *, progress='auto')
MeshExecutor(group=None, *, max_workers=None, local=False, name=None, options=None, progress='auto', results=None, \
resume=False, detach=False, patience=None)
MeshExecutor.find(self, expr, *, max_answers=20, max_time=2.0, max_age=60.0, rank=None)
MeshExecutor.map(self, fn, *iterables, timeout=None, chunksize=0, buffersize=None)
MeshExecutor.share(self, obj)
MeshExecutor.shutdown(self, wait=True, *, cancel_futures=False)
MeshExecutor.starmap(self, fn, iterable, **options)
MeshExecutor.start_map(self, fn, *iterables, options=None, name=None)
MeshExecutor.submit(self, fn, /, *args, **kwargs)
MeshExecutor.when(self, expr, *, timeout=None)
MeshExecutor.with_options(self, **changes)
MeshFuture.cancel(self)
MeshFuture.exception(self, timeout=None)
MeshFuture.explain(self)
MeshFuture.logs(self, *, stream='both', follow=False)
MeshFuture.result(self, timeout=None)
MeshFuture.retry(self)
RemoteFunction.map(self, *iterables, **options)
RemoteFunction.remote(self, *args, **kwargs)
RemoteFunction.start_map(self, *iterables, name=None)
RemoteFunction.submit(self, *args, **kwargs)
Shared.get(self)
call(func, /, *args, **kwargs)
checkpoint(value=None)
function(fn=None, /, *, options=None, **changes)
get_job(job_id='last')
map(fn, *iterables, **options)
progress(done, total=None, note='')
sh(command, inputs=None, *, send=(), fetch=(), to='.', name=None, **options)
wasm(module, inputs=(b'',), *, args=(), entry='_start', fuel=None, name=None, **options)
"""
FIELDS = """
Completed: args returncode stdout stderr files
Explanation: eligible reasons would_help
JobStatus: name total done failed cancelled running waiting id rate eta by_node note
NodeInfo: id name state slots path trust cpus mem gpus labels attributes age rank
NodeShare: running done failed rate note
Reason: code node what fix verdict
TaskInfo: id index state node attempt submitted started finished bytes_in bytes_out exit_code runtime_s stdout stderr
TaskOptions: cpus deps disk env equal error_rate fetch gpus key mem network not_on on prefer priority replicas require \
retries sandbox send timeout trust verify
TaskProgress: done total note
"""
PROPERTIES = {
    "Job": ("futures", "status"),
    "KeptJob": ("status",),
    "MeshExecutor": ("nodes",),
    "MeshFuture": ("files", "info", "progress"),
    "TaskError": ("info",),
}


def shown(name: str) -> str:
    """A callable of the package, with its parameters and what they are when they are not given."""
    found: Any = p2pcompute
    for part in name.split("."):
        found = getattr(found, part)
    signature = inspect.signature(found)
    bare = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    return f"{name}{signature.replace(parameters=bare, return_annotation=signature.empty)}"


def test_calls_are_made_as_before() -> None:
    """Broken: a program that was written against the last version raises TypeError."""
    expected = CALLS.split("\n")[1:-1]
    assert [shown(line.partition("(")[0]) for line in expected] == expected


def test_values_have_their_fields() -> None:
    """Broken: a program reads a field that is there no more."""
    for line in FIELDS.split("\n")[1:-1]:
        name, _, names = line.partition(": ")
        fields = [field.name for field in dataclasses.fields(getattr(p2pcompute, name))]
        assert fields == names.split() if name != "TaskOptions" else sorted(fields) == names.split(), name
    for name, names in PROPERTIES.items():
        for attribute in names:
            assert isinstance(getattr(getattr(p2pcompute, name), attribute), property), f"{name}.{attribute}"


def test_every_name_is_there_and_no_parameter_is_ours_alone() -> None:
    """Broken: `from p2pcompute import *` fails, or `help` shows what only the package itself may give."""
    for name in p2pcompute.__all__:
        assert getattr(p2pcompute, name) is not None
    for line in CALLS.split("\n")[1:-1]:
        assert " _" not in line.partition("(")[2], line
    assert issubclass(p2pcompute.MeshExecutor, cf.Executor) and issubclass(p2pcompute.MeshFuture, cf.Future)


HEAVY = {
    *("cryptography", "dns", "kademlia", "matplotlib", "msgspec", "numpy", "psutil", "uvicorn", "zeroconf"),
    *("p2pcompute.daemon", "p2pcompute.node", "p2pcompute.scheduler", "p2pcompute.simulation", "p2pcompute.trust"),
}
"""Each of them would cost every import of the library; a node that is begun imports what it needs."""


def test_importing_the_library_imports_no_node() -> None:
    """What most programs name is all here; `TaskProgress` is a view of the node."""
    program = (
        "import sys, p2pcompute\nfor name in {*p2pcompute.__all__} - {'TaskProgress'}: getattr(p2pcompute, name)\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {*done.stdout.split()}
    assert "p2pcompute.api.executor" in loaded
    assert not loaded & HEAVY
