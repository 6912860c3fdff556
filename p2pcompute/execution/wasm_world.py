"""What a WASI module gets instead of what differs from node to node: chance, time, and the order of directories.

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
_SUCCESS, _EFAULT, _EINVAL = 0, 21, 28
_SUBSCRIPTION: Final = struct.Struct("<QB7xI4xQQH6x")
"""userdata, what (0: a clock), clock or descriptor, timeout, precision, flags (1: an absolute time)."""
_EVENT: Final = struct.Struct("<QHB5xQH6x")
_REALTIME: Final = 0
_CLOCKS: Final = 4


class World:
    """The functions of one store that do not come from the machine."""

    def __init__(self, engine: wasmtime.Engine, seed: bytes, index: int) -> None:
        """Args:
        seed: what random numbers are drawn from.
        index: of the task in its job.
        """
        self._engine = engine
        self._seed = seed
        self._start_ns = _START_NS + index * 10**9
        self._now_ns = 0
        """Since the task began."""
        self._draws = 0

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
        return (place & 0xFFFFFFFF) + size <= self._memory.data_len(self._caller)

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
