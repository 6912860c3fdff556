"""What a WASI module gets instead of what differs from node to node: chance, time, and what file systems add to files
(order in a directory, numbers of inodes, dates).

Imported by the process that runs modules, together with wasmtime.

Source: WASI preview 1 (witx): layouts of subscription, event, filestat and dirent; its error numbers.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any, Final

import wasmtime

PREVIEW_1: Final = "wasi_snapshot_preview1"
_START_NS: Final = 946_684_800 * 10**9
"""The wall clock of the task with index 0 begins with the year 2000; of each further one, a second later."""
_LOOK_NS: Final = 1_000
"""How far a clock moves when it is looked at: who waits for it does so in vain otherwise."""
_SUCCESS, _EFAULT, _EINVAL, _ENAMETOOLONG = 0, 21, 28, 37
_SUBSCRIPTION: Final = struct.Struct("<QB7xI4xQQH6x")
"""userdata, what (0: a clock), clock or descriptor, timeout, precision, flags (1: an absolute time)."""
_EVENT: Final = struct.Struct("<QHB5xQH6x")
_STAT: Final = struct.Struct("<QQB7xQQQQQ")
"""device, inode, type, links, size, times of access, change of content and change of status."""
_ENTRY: Final = struct.Struct("<QQIB3x")
"""Of a directory: number of the next one, inode, length of the name that follows, type."""
_DIRECTORY: Final = 3
_RELAY_BYTES: Final = 1 << 16
_PATH_AT: Final = 64
_RELAY: Final = f"""(module
  (import "{PREVIEW_1}" "fd_readdir" (func $list (param i32 i32 i32 i64 i32) (result i32)))
  (import "{PREVIEW_1}" "fd_filestat_get" (func $stat (param i32 i32) (result i32)))
  (import "{PREVIEW_1}" "path_filestat_get" (func $find (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "list") (param i32 i64) (result i32)
    (call $list (local.get 0) (i32.const 0) (i32.const {_RELAY_BYTES}) (local.get 1) (i32.const {_RELAY_BYTES})))
  (func (export "stat") (param i32) (result i32) (call $stat (local.get 0) (i32.const 0)))
  (func (export "find") (param i32 i32 i32) (result i32)
    (call $find (local.get 0) (local.get 1) (i32.const {_PATH_AT}) (local.get 2) (i32.const 0))))"""
"""Calls the machine's functions with a memory of its own: they write into that of the module that calls them."""
_REALTIME: Final = 0
_CLOCKS: Final = 4


def relay(engine: wasmtime.Engine) -> wasmtime.Module:
    """Return what every world of an engine needs."""
    return wasmtime.Module(engine, _RELAY)


class World:
    """The functions of one store that do not come from the machine, or not as they are."""

    def __init__(self, engine: wasmtime.Engine, relay: wasmtime.Module, seed: bytes, index: int) -> None:
        """Args:
        relay: of the engine.
        seed: what random numbers are drawn from.
        index: of the task in its job.
        """
        self._engine = engine
        self._seed = seed
        self._start_ns = _START_NS + index * 10**9
        self._now_ns = 0
        """Since the task began."""
        self._draws = 0
        self._relay = relay
        self._outside: wasmtime.Instance | None = None
        self._inodes: dict[int, int] = {}
        """Real number → number by the order in which the module saw them."""
        self._listings: dict[int, list[tuple[bytes, int, int]]] = {}
        """Descriptor of a directory → (name, real inode, type) of each entry, by name."""

    def linker(self, store: wasmtime.Store) -> wasmtime.Linker:
        """Return WASI preview 1 with these functions in it."""
        linker = wasmtime.Linker(self._engine)
        linker.define_wasi()
        linker.allow_shadowing = True
        word, long = wasmtime.ValType.i32(), wasmtime.ValType.i64()
        for name, parameters, function in (
            ("random_get", [word, word], self._random_get),
            ("clock_res_get", [word, word], self._clock_res_get),
            ("clock_time_get", [word, long, word], self._clock_time_get),
            ("poll_oneoff", [word, word, word, word], self._poll_oneoff),
            ("fd_filestat_get", [word, word], self._fd_filestat_get),
            ("path_filestat_get", [word, word, word, word, word], self._path_filestat_get),
            ("fd_readdir", [word, word, word, long, word], self._fd_readdir),
        ):
            kind = wasmtime.FuncType(parameters, [word])
            linker.define_func(PREVIEW_1, name, kind, function, access_caller=True)
        return linker

    def _random_get(self, caller: wasmtime.Caller, place: int, size: int) -> int:
        self._draws += 1
        size &= 0xFFFFFFFF
        memory = _Memory(caller)
        if not memory.has(place, size):
            return _EFAULT
        memory.write(place, hashlib.shake_256(self._seed + self._draws.to_bytes(8, "big")).digest(size))
        return _SUCCESS

    def _clock_res_get(self, caller: wasmtime.Caller, clock: int, place: int) -> int:
        if not 0 <= clock < _CLOCKS:
            return _EINVAL
        return _Memory(caller).write(place, struct.pack("<Q", _LOOK_NS))

    def _clock_time_get(self, caller: wasmtime.Caller, clock: int, _precision: int, place: int) -> int:
        if not 0 <= clock < _CLOCKS:
            return _EINVAL
        self._now_ns += _LOOK_NS
        return _Memory(caller).write(place, struct.pack("<Q", self._time_ns(clock) & (2**64 - 1)))

    def _time_ns(self, clock: int) -> int:
        return self._now_ns + (self._start_ns if clock == _REALTIME else 0)

    def _poll_oneoff(self, caller: wasmtime.Caller, wanted: int, events: int, count: int, counted: int) -> int:
        """Descriptors are ready at once; else the clock moves to the first moment that is waited for."""
        memory = _Memory(caller)
        count &= 0xFFFFFFFF
        if not count:
            return _EINVAL
        size = count * _SUBSCRIPTION.size
        if not memory.has(wanted, size) or not memory.has(events, count * _EVENT.size):
            return _EFAULT
        found = list(_SUBSCRIPTION.iter_unpack(memory.read(wanted, size)))
        ready = [(mark, what) for mark, what, *_ in found if what]
        if not ready:
            moments = [self._moment(clock, timeout, flags) for _, _, clock, timeout, _, flags in found]
            self._now_ns = max(self._now_ns, min(moments))
            ready = [(mark, 0) for (mark, *_), due in zip(found, moments, strict=True) if due <= self._now_ns]
        answer = b"".join(_EVENT.pack(mark, _SUCCESS, what, int(what > 0), 0) for mark, what in ready)
        memory.write(events, answer)
        return memory.write(counted, struct.pack("<I", len(ready)))

    def _moment(self, clock: int, timeout: int, flags: int) -> int:
        """Return when a subscription is due, since the task began."""
        if not flags & 1:
            return self._now_ns + timeout
        return timeout - (self._start_ns if clock == _REALTIME else 0)

    # --- files ----------------------------------------------------------------------------------------

    def _call(self, caller: wasmtime.Caller, name: str, *arguments: int) -> int:
        """Call a function of the relay; return its error number."""
        if self._outside is None:
            linker = wasmtime.Linker(self._engine)
            linker.define_wasi()
            self._outside = linker.instantiate(caller, self._relay)
        function: Any = self._outside.exports(caller)[name]
        return int(function(caller, *arguments))

    def _relayed(self, caller: wasmtime.Caller) -> wasmtime.Memory:
        assert self._outside is not None
        memory: Any = self._outside.exports(caller)["memory"]
        assert isinstance(memory, wasmtime.Memory)
        return memory

    def _fd_filestat_get(self, caller: wasmtime.Caller, descriptor: int, place: int) -> int:
        return self._call(caller, "stat", descriptor) or self._tell_stat(caller, place)

    def _path_filestat_get(
        self, caller: wasmtime.Caller, descriptor: int, flags: int, path: int, size: int, place: int
    ) -> int:
        memory = _Memory(caller)
        if not 0 <= size < _RELAY_BYTES:
            return _ENAMETOOLONG
        if not memory.has(path, size):
            return _EFAULT
        self._call(caller, "stat", 0)  # the relay is there from now on
        self._relayed(caller).write(caller, memory.read(path, size), _PATH_AT)
        return self._call(caller, "find", descriptor, flags, size) or self._tell_stat(caller, place)

    def _tell_stat(self, caller: wasmtime.Caller, place: int) -> int:
        _, inode, what, _, size, *_ = _STAT.unpack(self._relayed(caller).read(caller, 0, _STAT.size))
        if what == _DIRECTORY:
            size = 0
        times = (self._start_ns, self._start_ns, self._start_ns)
        return _Memory(caller).write(place, _STAT.pack(1, self._inode(inode), what, 1, size, *times))

    def _inode(self, real: int) -> int:
        return self._inodes.setdefault(real, len(self._inodes) + 1)

    def _fd_readdir(
        self, caller: wasmtime.Caller, descriptor: int, place: int, size: int, start: int, counted: int
    ) -> int:
        if start == 0 or descriptor not in self._listings:
            entries: list[tuple[bytes, int, int]] = []
            if number := self._list(caller, descriptor, entries):
                return number
            self._listings[descriptor] = sorted(entries)
        room = size & 0xFFFFFFFF
        told = bytearray()
        for index, (name, inode, what) in enumerate(self._listings[descriptor]):
            if index >= start >= 0 and len(told) < room:
                told += _ENTRY.pack(index + 1, self._inode(inode), len(name), what) + name
        memory = _Memory(caller)
        return memory.write(place, bytes(told[:room])) or memory.write(counted, struct.pack("<I", min(len(told), room)))

    def _list(self, caller: wasmtime.Caller, descriptor: int, entries: list[tuple[bytes, int, int]]) -> int:
        """Read a whole directory; return the error number."""
        cookie = 0
        while True:
            if number := self._call(caller, "list", descriptor, cookie):
                return number
            memory = self._relayed(caller)
            (used,) = struct.unpack("<I", memory.read(caller, _RELAY_BYTES, _RELAY_BYTES + 4))
            data = bytes(memory.read(caller, 0, used))
            position, before = 0, cookie
            while position + _ENTRY.size <= used:
                following, inode, size, what = _ENTRY.unpack_from(data, position)
                end = position + _ENTRY.size + size
                if end > used:
                    break
                entries.append((data[position + _ENTRY.size : end], inode, what))
                cookie, position = following, end
            if used < _RELAY_BYTES or cookie == before:
                return _SUCCESS


class _Memory:
    """The memory of the instance that calls."""

    def __init__(self, caller: wasmtime.Caller) -> None:
        found: Any = caller.get("memory")
        if not isinstance(found, wasmtime.Memory):
            raise wasmtime.Trap("the module exports no memory")
        self._caller = caller
        self._memory = found

    def has(self, place: int, size: int) -> bool:
        """Whether these bytes are inside."""
        return bool((place & 0xFFFFFFFF) + size <= self._memory.data_len(self._caller))

    def read(self, place: int, size: int) -> bytes:
        """Return bytes that are inside."""
        start = place & 0xFFFFFFFF
        return bytes(self._memory.read(self._caller, start, start + size))

    def write(self, place: int, data: bytes) -> int:
        """Write; return the error number."""
        if not self.has(place, len(data)):
            return _EFAULT
        self._memory.write(self._caller, data, place & 0xFFFFFFFF)
        return _SUCCESS
