"""What a study gave: the document p2pc.sim/1, and the command that runs a seed again.

Source: Student's t-interval over seeds; its quantiles by Fisher's expansion (Abramowitz and Stegun 26.7.5).
"""

from __future__ import annotations

import hashlib
import math
import shlex
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from p2pcompute.simulation.archive import code_version
from p2pcompute.simulation.scenario import Scenario
from p2pcompute.simulation.study import Point, Study

SCHEMA: Final = "p2pc.sim/1"

_T975: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t at 97.5 % for 1 to 9 degrees of freedom; the expansion is exact to 0.001 from there on."""


def interval(values: Sequence[float]) -> dict[str, float]:
    """Return mean, low and high of a 95 % t-interval; of one value all three are that value."""
    mean = statistics.fmean(values)
    freedom = len(values) - 1
    if not freedom:
        return {"mean": mean, "low": mean, "high": mean}
    z = statistics.NormalDist().inv_cdf(0.975)
    t = (
        _T975[freedom - 1]
        if freedom <= len(_T975)
        else z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


SHARES: Final = (
    "banned_honest", "error_rate", "idle_while_work_share", "lookup_recall", "lookup_share", "lookup_success",
    "pool_utilisation", "query_stale", "query_success", "read_success", "recall", "record_share", "success", "up_share",
    "utilisation",
)  # fmt: skip
"""Figures that lie between 0 and 1."""


def bounded(name: str, found: Mapping[str, float], values: Sequence[float]) -> dict[str, float]:
    """Cut an interval to what a figure can be: a share lies from 0 to 1, a makespan is no less than its
    lower bound, nothing falls below 0 that never did."""
    base = name[:-4] if name[-4:] in ("_p50", "_p95", "_max") else name
    least = 1.0 if base in RATIOS else 0.0
    low = max(least, found["low"]) if min(values) >= least else found["low"]
    high = min(1.0, found["high"]) if base in SHARES and max(values) <= 1 else found["high"]
    return {"mean": found["mean"], "low": low, "high": high}


RATIOS: Final = ("makespan_ratio", "computed_ratio")
"""Figures that are 1 at least."""


def is_interval(found: Mapping[str, float], seeds: Sequence[int]) -> bool:
    """Whether a figure of a summary over these seeds has an interval: one value has none, its low and high are it."""
    return found.get("count", len(seeds)) > 1


def summary(study: Study) -> dict[str, Any]:
    """Return the p2pc.sim/1 document: of the one point, or with `points` of each of several."""
    if len(study.points) == 1 and not study.points[0].values:
        return {"schema": SCHEMA, **_point_summary(study, study.points[0])}
    done = [seed for seed in study.seeds if any(seed in point.results for point in study.points)]
    shared = {"schema": SCHEMA, "scenario": study.scenario.name, "seeds": done, "code": code_version()}
    points = [{"set": point.swept(), **_point_summary(study, point)} for point in study.points]
    return {**shared, "points": points}


def _point_summary(study: Study, point: Point) -> dict[str, Any]:
    results = [point.results[seed] for seed in study.seeds if seed in point.results]
    hashes = [result.trace_hash for result in results]
    names = sorted({name for result in results for name in result.metrics})
    fired: Counter[str] = Counter()
    for result in results:
        fired.update(result.fired)
    metrics = {}
    for name in names:
        values = [result.metrics[name] for result in results if math.isfinite(result.metrics.get(name, math.nan))]
        if values:
            metrics[name] = bounded(name, interval(values), values)
            if len(values) != len(results):  # some seeds have no such figure
                metrics[name]["count"] = len(values)
    return {
        "scenario": study.scenario.name,
        "seeds": [result.seed for result in results],
        "nodes": int(getattr(point.scenario.settings, "nodes", 0)),
        "trace_hash": _hash_of(hashes),
        "events": sum(result.events for result in results),
        "messages": sum(result.messages for result in results),
        "wall_s": round(sum(result.wall_s for result in results), 3),
        "simulated_s": round(sum(result.simulated_s for result in results), 6),
        "metrics": metrics,
        "fired": dict(sorted(fired.items())),
        "problems": [{"seed": result.seed, "problems": list(result.problems)} for result in results if result.problems],
        "notes": dict(Counter(note for result in results for note in result.notes)),
        "code": code_version(),
    }


def _hash_of(hashes: Sequence[str]) -> str | None:
    """One hash for those of the runs, in the order of seeds; None: there are none."""
    if len(hashes) < 2:
        return hashes[0] if hashes else None
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


TRACE_VALUES: Final = {
    "population.sessions": "none",
    "population.classes": "[]",
    "population.correlation": "0",
    "population.day_amplitude": "0",
    "population.time_scale": "1",
}
"""What ``--trace`` sets besides the trace of availability, which takes the place of it."""


def replay_command(scenario: Scenario, seed: int, values: Mapping[str, str], until_s: float | None = None) -> str:
    """Return the command that runs one seed again, with these settings changed; the last name of a key counts."""
    flags = {"nodes": "--nodes", "hours": "--hours", "population.trace": "--trace"}
    implied = TRACE_VALUES if "population.trace" in values else {}
    words = ["p2pc", "sim", "run", scenario.source, "--seed", str(seed)]
    last = {scenario.keys.get(key, key): key for key in values}
    for key, value in values.items():
        if implied.get(key) == value or last[scenario.keys.get(key, key)] != key:
            continue
        words += [flags[key], value] if key in flags else ["--set", f"{key}={value}"]
    return shlex.join([*words, *(() if until_s is None else ("--until", f"{until_s:g}"))])
