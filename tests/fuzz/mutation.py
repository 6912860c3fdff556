"""Making wrong bytes and wrong values out of right ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

EDGES: Final[tuple[Any, ...]] = (
    None, True, False, 0, 1, -1, 255, 256, 2**16, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), -(2**64),
    b"", b"\0", b"\xff" * 32, bytes(33), bytes(70_000), "", "\0", "../../etc/passwd", "/", "ä" * 300, "x" * 70_000,
    [], {}, [[]], [[[[[]]]]], {"": None}, {0: 0}, [None] * 300, 0.5, float("inf"), float("nan"),
)  # fmt: skip


class Mutator:
    """One stream of mistakes; the same seed makes the same ones."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    # --- bytes ------------------------------------------------------------------------------------

    def junk(self, size_max: int = 300) -> bytes:
        return self.rng.randbytes(self.rng.randrange(size_max + 1))

    def bytes(self, data: bytes) -> bytes:
        """`data` with one to four mistakes."""
        out = bytearray(data)
        for _ in range(self.rng.choice((1, 1, 1, 2, 4))):
            self.rng.choice(_STEPS)(self.rng, out)
        return bytes(out)

    # --- values -----------------------------------------------------------------------------------

    def value(self, value: Any) -> Any:
        """`value` (of lists, dicts, numbers, text, bytes) with one mistake somewhere in it."""
        rng = self.rng
        if isinstance(value, list) and value and rng.random() < 0.85:
            position = rng.randrange(len(value))
            match rng.randrange(6):
                case 0:
                    return value[:position] + value[position + 1 :]
                case 1:
                    return [*value[:position], rng.choice(EDGES), *value[position:]]
                case 2:
                    return (
                        value[:position] + value[position : position + 1] * rng.choice((2, 3, 600)) + value[position:]
                    )
                case _:
                    return [*value[:position], self.value(value[position]), *value[position + 1 :]]
        if isinstance(value, dict) and value and rng.random() < 0.85:
            name = rng.choice(list(value))
            match rng.randrange(5):
                case 0:
                    return {key: item for key, item in value.items() if key != name}
                case 1:
                    return {**value, "another": rng.choice(EDGES)}
                case _:
                    return {**value, name: self.value(value[name])}
        if isinstance(value, bytes) and value and rng.random() < 0.5:
            return self.bytes(value)
        if type(value) is int and rng.random() < 0.5:
            return value + rng.choice((-1, 1, 2, 1000, -1000, 2**32))
        return rng.choice(EDGES)


def _flip(rng: random.Random, out: bytearray) -> None:
    if out:
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, out: bytearray) -> None:
    if out:
        out[rng.randrange(len(out))] = rng.choice((0, 1, 0x1F, 0x5B, 0x7F, 0x80, 0x9B, 0xBB, 0xC2, 0xFB, 0xFF))


def _cut(rng: random.Random, out: bytearray) -> None:
    del out[rng.randrange(len(out) + 1) :]


def _insert(rng: random.Random, out: bytearray) -> None:
    position = rng.randrange(len(out) + 1)
    out[position:position] = rng.randbytes(rng.randrange(1, 9))


def _remove(rng: random.Random, out: bytearray) -> None:
    start = rng.randrange(len(out) + 1)
    del out[start : start + rng.randrange(1, 9)]


def _repeat(rng: random.Random, out: bytearray) -> None:
    start = rng.randrange(len(out) + 1)
    out[start:start] = out[start : start + rng.randrange(1, 65)]


_STEPS: Final[tuple[Callable[[random.Random, bytearray], None], ...]] = (
    _flip, _flip, _overwrite, _overwrite, _cut, _insert, _remove, _repeat,
)  # fmt: skip
