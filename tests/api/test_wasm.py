"""WASI modules from Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcompute import BadValue, Job, MeshExecutor, TaskError, TaskOptions, UsageError
from p2pcompute.api.wasm import start_modules

wasmtime = pytest.importorskip("wasmtime", reason="runs with wasmtime, which dev.py test installs")

COPY = """(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 2)
  (func (export "_start")
    (loop $more
      (i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const 65536))
      (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (if (i32.load (i32.const 8))
        (then
          (if (i32.eq (i32.load8_u (i32.const 1024)) (i32.const 33)) (then (call $exit (i32.const 3))))
          (i32.store (i32.const 4) (i32.load (i32.const 8)))
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
          (br $more))))))"""


def start(executor: MeshExecutor, module: object, inputs: object, **given: object) -> Job[bytes]:
    """`p2pcompute.wasm` on this executor."""
    chosen = {"args": (), "entry": "_start", "fuel": None, "name": None, "options": TaskOptions(), **given}
    return start_modules(executor, module, inputs, **chosen)  # type: ignore[arg-type]


def test_bytes_in_bytes_out(executor: MeshExecutor, tmp_path: Path) -> None:
    """Broken: a module does not read its input, or what it prints is not its value."""
    path = tmp_path / "copy.wasm"
    path.write_bytes(bytes(wasmtime.wat2wasm(COPY)))
    large = bytes(range(256)) * 1000
    job = start(executor, path, [b"one", b"", large])
    assert job.results(timeout=30) == [b"one", b"", large]
    assert job.name == "copy.wasm"
    failed = start(executor, path.read_bytes(), [b"!"]).futures[0]
    with pytest.raises(TaskError, match="3"):
        failed.result(timeout=30)
    assert failed.info.exit_code == 3
    with pytest.raises(TaskError, match=r"fuel|instructions"):
        start(executor, path, [large], fuel=10).results(timeout=30)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"module": b"no module"}, UsageError),
        ({"module": "missing.wasm"}, UsageError),
        ({"entry": "main"}, BadValue),
        ({"fuel": 0}, BadValue),
        ({"inputs": ["text"]}, BadValue),
        ({"options": TaskOptions(network="full")}, UsageError),
    ],
)
def test_what_is_refused(executor: MeshExecutor, given: dict[str, object], kind: type[Exception]) -> None:
    """Broken: what cannot run is found out on another node."""
    arguments = {"module": b"\0asm", "inputs": [b""], **given}
    with pytest.raises(kind):
        start(executor, **arguments)
