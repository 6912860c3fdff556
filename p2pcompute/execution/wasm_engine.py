"""The process that runs a WASI module: ``python -m p2pcompute.execution.wasm_engine CHANNEL_FD``.

It belongs to one job: the module is compiled once, and each task gets a store, an instance and a directory of its own.
A module sees its words, its variables, its standard streams and that directory, and nothing else of the machine.

What a module computes depends on its inputs alone, on every node: NaNs have one form, there are no threads, random
numbers are drawn from the task's id, and the clock begins at a fixed moment and moves when it is looked at or slept on.

Whoever started this process watches time and memory and kills it, since a module inside a call of the host stops for
nobody.  wasmtime has threads once it has run something: nothing is forked from here.

Source: WASI preview 1 (witx), https://docs.wasmtime.dev/examples-deterministic-wasm-execution.html
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
from typing import TYPE_CHECKING, Any, Final

from p2pcompute.execution import messages
from p2pcompute.execution.programs import made_for
from p2pcompute.execution.wasm_world import PREVIEW_1, World, relay

if TYPE_CHECKING:
    import wasmtime

_STACK_BYTES: Final = 1 << 20
"""The same everywhere: how deep a recursion may go is part of the result."""
_TABLE_ELEMENTS: Final = 1_000_000
_CORE, _COMPONENT = b"\0asm\1\0\0\0", b"\0asm\x0d\0\1\0"
_OF_THE_MODULE: Final = ("minimum size", "limit", "incompatible import type", "unknown import")
"""What an instance can fail with that is the same on every node; else the machine is short of something."""
_COMPILE_FIX: Final = "compile it for wasm32-wasip1 (clang --target=wasm32-wasi, cargo build --target wasm32-wasip1)"


class BadModule(Exception):
    """No node can run this module; the text is what, why and what to do."""


class Engine:
    """A compiled module, ready to be run again and again."""

    def __init__(self, setup: dict[str, Any]) -> None:
        """Args:
        setup: `code`, the path of the module; `cache`, where its compiled form is kept; `mem_bytes`, the most memory of
            an instance; `fuel`, the most instructions of a task, or None; `fence`, what to give up first.

        Raises:
            BadModule: it is none, or needs what is not there.
        """
        import wasmtime

        with open(setup["code"], "rb") as file:
            code = file.read()
        if (fence := setup["fence"]) is not None:
            _shut_in(fence)
        self._wasmtime = wasmtime
        self.Failure = wasmtime.WasmtimeError
        self._mem_bytes: int = setup["mem_bytes"]
        self._fuel: int | None = setup["fuel"]
        self._engine = wasmtime.Engine(_configuration(wasmtime, has_fuel=self._fuel is not None))
        self._relay = relay(self._engine)
        self._module = self._load(code, os.path.join(setup["cache"], os.path.basename(setup["code"])))
        self._check()

    def _load(self, code: bytes, name: str) -> wasmtime.Module:
        """Compile the module, or take what was compiled here before, under this name."""
        module = self._wasmtime.Module
        if os.path.exists(name):
            with contextlib.suppress(self._wasmtime.WasmtimeError):  # damaged: it is compiled again
                return module.deserialize_file(self._engine, name)
        _check_head(code)
        try:
            compiled = module(self._engine, code)
        except self._wasmtime.WasmtimeError as error:
            why = _first_line(error)
            raise BadModule(f"the module is broken ({why}); compile it again, or send it again") from error
        draft = f"{name}.{os.getpid()}"
        with contextlib.suppress(OSError):  # without room it is compiled again
            with open(draft, "wb") as file:
                file.write(compiled.serialize())
            os.rename(draft, name)
        return compiled

    def _check(self) -> None:
        store = self._store()
        store.set_wasi(self._wasmtime.WasiConfig())
        linker = World(self._engine, self._relay, b"", 0).linker(store)
        missing = [(item.module, item.name or "") for item in self._module.imports if not _has(linker, store, item)]
        if missing:
            raise BadModule(_missing_text(missing))
        kinds = {export.name: export.type for export in self._module.exports}
        if not isinstance(kinds.get("_start"), self._wasmtime.FuncType):
            raise BadModule(
                "the module is no program (it exports no '_start', so it is a library); "
                "link it as a command, with a main function"
            )

    def _store(self) -> wasmtime.Store:
        store = self._wasmtime.Store(self._engine)
        store.set_limits(memory_size=self._mem_bytes, table_elements=_TABLE_ELEMENTS, instances=8, tables=16)
        if self._fuel is not None:
            store.set_fuel(self._fuel)
        return store

    def run(self, task: dict[str, Any]) -> tuple[int, int, int, str]:
        """Run one task; return how it ended (see `messages`), its exit code, its memory and what there is to say.

        Args:
            task: `argv`, `env`, `stdin`, `stdout`, `stderr` and `directory` as paths, `seed` and `index`.
        """
        wasmtime = self._wasmtime
        store = self._store()
        wasi = wasmtime.WasiConfig()
        wasi.argv = task["argv"]
        wasi.env = sorted(task["env"].items())
        wasi.stdin_file, wasi.stdout_file, wasi.stderr_file = task["stdin"], task["stdout"], task["stderr"]
        wasi.preopen_dir(task["directory"], ".")
        store.set_wasi(wasi)
        linker = World(self._engine, self._relay, task["seed"], task["index"]).linker(store)
        used = 0
        try:
            instance = linker.instantiate(store, self._module)
        except wasmtime.Trap as error:
            return messages.WASM_TRAP, 0, 0, self._trap_text(error)
        except wasmtime.WasmtimeError as error:
            why = _first_line(error)
            is_always = any(reason in why for reason in _OF_THE_MODULE)
            return messages.WASM_BAD if is_always else messages.WASM_SHORT, 0, 0, self._instance_text(why)
        exports = instance.exports(store)
        code, how, text = 0, messages.WASM_EXIT, ""
        try:
            exports["_start"](store)  # type: ignore[operator, unused-ignore] # it is a function: `_check`
        except wasmtime.ExitTrap as error:
            code = int(error.code)
        except wasmtime.Trap as error:
            how, text = messages.WASM_TRAP, self._trap_text(error)
        except wasmtime.WasmtimeError as error:
            how, text = messages.WASM_TRAP, str(error)
        memory = exports.get("memory")
        if isinstance(memory, wasmtime.Memory):
            used = memory.data_len(store)
        store.close()
        return how, code, used, text

    def _instance_text(self, why: str) -> str:
        fix = "give it more: --mem" if "memory" in why else _COMPILE_FIX
        return f"the module cannot be started with {self._mem_bytes >> 20} MiB of memory ({why}); {fix}"

    def _trap_text(self, error: wasmtime.Trap) -> str:
        if error.trap_code is self._wasmtime.TrapCode.OUT_OF_FUEL:
            return f"the module used its {self._fuel} instructions and was stopped; give it more: --fuel"
        return f"the module stopped with a trap:\n{error}"


def _configuration(wasmtime: Any, *, has_fuel: bool) -> Any:
    """Return settings that are the same on every node: part of what a result is."""
    config = wasmtime.Config()
    config.cranelift_nan_canonicalization = True
    config.wasm_relaxed_simd_deterministic = True
    config.wasm_threads = False
    config.wasm_memory64 = False
    config.wasm_multi_memory = False  # each would have the limit of memory for itself
    config.max_wasm_stack = _STACK_BYTES
    config.parallel_compilation = False
    config.memory_init_cow = False  # a sandbox lets nobody make files in memory
    config.consume_fuel = has_fuel
    return config


def _shut_in(fence: dict[str, Any]) -> None:
    """Give up what a module must not get at, should it ever get out of its memory.

    Raises:
        OSError: that did not work.
    """
    if sys.platform != "linux":
        for which, value in fence["limits"].items():
            resource.setrlimit(which, (value, value))
        return
    from p2pcompute.execution import box_setup

    with open("/proc/self/status") as file:
        if not any(line.split() == ["Threads:", "1"] for line in file):
            raise OSError("there are threads already")
    os.sched_setaffinity(0, fence["cores"])
    try:
        box_setup.fence(user=fence["user"], limits=fence["limits"])
    except box_setup.Broken as error:
        raise OSError(str(error)) from error


def _check_head(code: bytes) -> None:
    if code[:8] == _CORE:
        return
    if code[:8] == _COMPONENT:
        raise BadModule(f"the module is a component (WASI preview 2, which nodes do not run); {_COMPILE_FIX}")
    if code[:4] == _CORE[:4]:
        raise BadModule(f"the module is of an unknown version of WebAssembly; {_COMPILE_FIX}")
    if machine := made_for(code):
        raise BadModule(
            f"the file is no WebAssembly module (it is a program for {machine}); run it with --kind command"
        )
    raise BadModule(f"the file is no WebAssembly module (it does not begin like one); {_COMPILE_FIX}")


def _has(linker: Any, store: Any, item: Any) -> bool:
    try:
        return linker.get(store, item.module, item.name or "") is not None
    except Exception:  # noqa: BLE001 - the binding has no error of its own for this
        return False


def _missing_text(missing: list[tuple[str, str]]) -> str:
    names = ", ".join(f"{module}.{name}" for module, name in missing[:5])
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    modules = {module for module, _ in missing}
    if "wasi_unstable" in modules:
        why = "that is WASI preview 0, from before 2020"
    elif any(module == "wasi" and "thread" in name for module, name in missing) or ("env", "memory") in missing:
        why = "that is for threads, which would make results differ"
    elif modules == {PREVIEW_1}:
        why = "WASI preview 1 has no such function"
    else:
        why = "nodes offer WASI preview 1 and nothing else"
    return f"the module imports {names}{more} ({why}); {_COMPILE_FIX}"


def _first_line(error: Exception) -> str:
    """Return what an error of wasmtime is about, without its chain of contexts."""
    head, _, causes = str(error).partition("Caused by:")
    lines = [line.strip() for line in (causes or head).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    number, _, reason = last.partition(": ")
    return (reason if number.isdigit() else last)[:300]


def _used_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _answer(channel: socket.socket, how: int, code: int, used: int, cpu_s: float, text: str) -> None:
    body = text.encode("utf-8", "replace")[: messages.WASM_TEXT_BYTES_MAX]
    channel.sendall(messages.WASM_ANSWER.pack(how, code, used, cpu_s, len(body)) + body)


def _receive(channel: socket.socket) -> Any:
    """Return the next message; the end of the channel ends this process."""
    head = channel.recv(messages.HEAD.size, socket.MSG_WAITALL)
    if len(head) < messages.HEAD.size:
        os._exit(0)
    size = messages.HEAD.unpack(head)[0]
    body = b""
    while len(body) < size:
        more = channel.recv(size - len(body))
        if not more:
            os._exit(0)
        body += more
    return messages.unpack_down(body)


def main() -> None:
    """Compile the module, then run tasks until the other end closes."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    setup = _receive(channel)[0]
    os.chdir(setup["directory"])
    engine: Engine | None = None
    how, text = messages.WASM_EXIT, ""
    try:
        engine = Engine(setup)
    except BadModule as error:
        how, text = messages.WASM_BAD, str(error)
    except (OSError, ImportError) as error:
        how, text = messages.WASM_BROKEN, f"{type(error).__name__}: {error}"
    spent = 0.0
    while True:
        task = _receive(channel)[0]
        code = used = 0
        if engine is not None:
            _limit_cpu(spent, task["cpu_s"])
            try:
                how, code, used, text = engine.run(task)
            except (OSError, engine.Failure) as error:
                how, text = messages.WASM_BROKEN, f"{type(error).__name__}: {error}"
        before, spent = spent, _used_cpu_s()
        _answer(channel, how, code, used, spent - before, text)


def _limit_cpu(spent: float, cpu_s: float | None) -> None:
    """Let the kernel end this process when its task has used its CPU time."""
    if cpu_s is not None:
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        soft = max(1, int(spent + cpu_s + 0.999))
        resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


if __name__ == "__main__":
    main()
