"""WASM modules between real daemons: one that has no wasmtime, one that takes nothing else, one that has no sandbox."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.mesh import Daemon, Mesh

wasmtime = pytest.importorskip("wasmtime")

ECHO = """(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $sizes (i32.const 16) (i32.const 4))) (drop (call $args (i32.const 64) (i32.const 1024)))
    (i32.store (i32.const 0) (i32.const 1024))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"""

C_PROGRAM = r"""
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {
  double sum = 0;
  for (int i = 1; i < 200000; i++) sum += sin(i) / (i + atof(argv[1]));
  FILE *in = fopen(argv[2], "r"), *out = fopen("result", "w");
  char line[64] = "";
  if (!in || !out || !fgets(line, sizeof line, in)) return 9;
  fprintf(out, "%.17g %s", sum, line);
  printf("%.17g\n", sum);
  return 0;
}
"""


@pytest.fixture(scope="module")
def trio() -> Iterator[list[Daemon]]:
    path = Path(tempfile.mkdtemp(prefix="p2pc-", dir="/tmp"))
    path.chmod(0o755)
    mesh = Mesh(path, P2PC_NODE__ACCEPT="wasm")
    try:
        (path / "without" / "wasmtime").mkdir(parents=True)
        (path / "without" / "wasmtime" / "__init__.py").write_text("raise ImportError('not installed')\n")
        (path / "bin").mkdir()
        (path / "bin" / "bwrap").write_text("#!/bin/sh\necho no namespaces here >&2\nexit 1\n")
        (path / "bin" / "bwrap").chmod(0o755)
        ada = mesh.add("ada", PYTHONPATH=str(path / "without"))
        bob, cyd = mesh.add("bob"), mesh.add("cyd", PATH=f"{path / 'bin'}{os.pathsep}{os.environ['PATH']}")
        for daemon in (ada, bob, cyd):
            daemon.start()
        token = mesh.token(ada, uses=2)
        for daemon in (bob, cyd):
            daemon.p2pc("join", "--accept", "wasm", token).check()
        ada.wait_ups(["bob", "cyd"], 20)
        (ada.home / "x.wasm").write_bytes(bytes(wasmtime.wat2wasm(ECHO)))
        yield [ada, bob, cyd]
    except BaseException:
        mesh.close(is_failing=True)
        raise
    else:
        mesh.close()
    finally:
        shutil.rmtree(path, ignore_errors=True)


def test_modules_run_where_they_can(trio: list[Daemon]) -> None:
    """A node without wasmtime submits them and takes none; at both levels they give the same; nothing else is taken."""
    ada, _, _ = trio
    outputs = [ada.p2pc("run", "-k", "--on", name, "x.wasm", ":::", "a", "b").check().raw for name in ("bob", "cyd")]
    assert outputs == [b"x.wasm\0a\0x.wasm\0b\0"] * 2
    shown = ada.p2pc("run", "--explain", "x.wasm", ":::", "a").out
    assert "2 of 3 nodes can take it now." in shown, shown
    assert "needs has=wasm; not installed there (install wasmtime>=50 there)" in shown
    shown = ada.p2pc("run", "--explain", "--not-on", "ada", "echo {}", ":::", "a").out
    assert shown.count("it takes only jobs with job.kind=='wasm'") == 2, shown
    refused = ada.p2pc("run", "--on", "ada", "x.wasm", ":::", "a").check(4)
    assert "no node can ever run this" in refused.err and "wasmtime>=50" in refused.err, refused.err
    ada.p2pc("run", "--local", "x.wasm", ":::", "a").check(4)  # not: waits for ever


def test_bad_modules_fail_once(trio: list[Daemon]) -> None:
    """What must fail everywhere is tried once, and said: what, why and what to do."""
    ada = trio[0]
    (ada.home / "bad.wasm").write_bytes(b"\0asm\1\0\0\0\xff")
    failed = ada.p2pc("run", "bad.wasm", ":::", "a").check(1)
    assert "the module is broken" in failed.err and "compile it again" in failed.err
    assert "retried" not in failed.err
    assert ada.p2pc("show", "--json", "last/0").json()["attempts"] == 1
    refused = ada.p2pc("run", "--kind", "wasm", "/bin/sh", ":::", "a").check(2)
    assert "is no WebAssembly module" in refused.err
    (ada.home / "in.txt").write_text("hello")
    refused = ada.p2pc("run", "x.wasm", ":::", "in.txt").check(2)
    assert "--send {}" in refused.err


def test_c_program(trio: list[Daemon]) -> None:
    """A program of clang and wasi-libc, with its own mathematics and files, gives the same bytes on every node."""
    if shutil.which("clang") is None or not Path("/usr/include/wasm32-wasi").is_dir():
        pytest.skip("clang, lld, wasi-libc and libclang-rt-dev-wasm32 are not installed")
    ada = trio[0]
    (ada.home / "sum.c").write_text(C_PROGRAM)
    words = ["clang", "--target=wasm32-wasi", "--sysroot=/usr", "-O2", "sum.c", "-o", "sum.wasm", "-lm"]
    subprocess.run(words, cwd=ada.home, check=True)
    (ada.home / "in").write_text("hello\n")
    found = []
    for name in ("bob", "cyd"):
        files = ("--share", "in", "--fetch", "result", "--results", f"of-{name}")
        shown = ada.p2pc("run", "-k", "--on", name, *files, "sum.wasm", "{}", "in", ":::", "1", "2").check()
        results = sorted((ada.home / f"of-{name}").glob("**/result"))
        found.append((shown.raw, [path.read_bytes() for path in results]))
    assert found[0] == found[1] and len(found[0][1]) == 2
    assert all(content.endswith(b" hello\n") for content in found[0][1])
