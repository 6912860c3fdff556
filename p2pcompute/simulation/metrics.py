"""Figures of one run: counters, samples, peaks.  Bounded memory, no clock, no order that a set could change."""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

SAMPLES_MAX: Final = 10_000
"""Values of one name that are kept for its quantiles; beyond it every second one is dropped, evenly over time."""


class _Samples:
    """One name's values: count, sum and largest exactly, quantiles from those that are kept."""

    __slots__ = ("_skip", "_stride", "count", "highest", "kept", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.highest = -math.inf
        self.kept: list[float] = []
        self._stride = 1
        self._skip = 0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.highest = max(self.highest, value)
        if self._skip:
            self._skip -= 1
            return
        self._skip = self._stride - 1
        self.kept.append(value)
        if len(self.kept) >= SAMPLES_MAX:
            del self.kept[1::2]
            self._stride *= 2
            self._skip = self._stride - 1

    def quantile(self, share: float) -> float:
        ordered = sorted(self.kept)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Metrics:
    """What a run counts and measures, by name.  Units are part of a name: `join_s`, `bytes_per_node_s`."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._samples: dict[str, _Samples] = {}
        self._values: dict[str, float] = {}
        self._shares: dict[str, list[int]] = {}

    def count(self, name: str, n: float = 1) -> None:
        """Add `n` to a counter."""
        self._counts[name] += n  # type: ignore[assignment]

    def sample(self, name: str, value: float) -> None:
        """Add a value to a series."""
        found = self._samples.get(name)
        if found is None:
            found = self._samples[name] = _Samples()
        found.add(value)

    def share(self, name: str, is_so: bool) -> None:
        """Add a case; the figure is the part of the cases in which it is so."""
        found = self._shares.setdefault(name, [0, 0])
        found[0] += is_so
        found[1] += 1

    def peak(self, name: str, value: float) -> None:
        """Keep the largest value."""
        if value > self._values.get(name, -math.inf):
            self._values[name] = value

    def set(self, name: str, value: float) -> None:
        """Give a figure its value."""
        self._values[name] = value

    def counted(self, name: str) -> float:
        """A counter as it stands."""
        return float(self._counts[name])

    def result(self) -> dict[str, float]:
        """All figures by name, sorted: counters, peaks and values as they are; a series as its mean under its own
        name, and its quantiles and largest value as `name_p50`, `name_p95`, `name_max`."""
        figures: dict[str, float] = {name: float(value) for name, value in self._counts.items()}
        figures.update(self._values)
        figures.update({name: so / cases for name, (so, cases) in self._shares.items()})
        for name, samples in self._samples.items():
            figures[name] = samples.total / samples.count
            figures[f"{name}_p50"] = samples.quantile(0.5)
            figures[f"{name}_p95"] = samples.quantile(0.95)
            figures[f"{name}_max"] = samples.highest
        return dict(sorted(figures.items()))
