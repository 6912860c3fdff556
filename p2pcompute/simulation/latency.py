"""Where machines are, and how long a packet takes between two of them.

A machine has a `Spot`; the one-way delay of a pair follows from two spots alone, so that memory grows with the
machines and not with their pairs.  Models: "lan", "lognormal", "king", "meridian", "regions", or the path of a
`.syscoord` file.  Draws come from the seed and the name of the place, so that a machine is where it is whatever
else the simulation holds.  "regions" rests on assumptions throughout: see REGIONS.

Coordinates never violate the triangle inequality, which the Internet does (PlanetLab: 5.6 % of random triples); so
each pair's delay is multiplied by log-normal noise, which is a hash of the pair.

Source: King (1,740 DNS servers, p2psim) and Meridian (2,500 hosts) as Vivaldi coordinates: SimGrid's syscoord files.
The presets are distributions fitted to them: a mixture of six Gaussians (expectation maximisation over x and y) and
the empirical quantiles of the height.  Their round trips (ms) against those of all pairs of the file, without noise:

    ========  ====  ====  ====  ====  ====  ====  ====
    quantile    5%   10%   25%   50%   75%   90%   95%
    King        39    51    87   161   240   337   407
    preset      37    51    91   159   244   351   443
    error      -6%   -2%   +4%   -2%   +2%   +4%   +9%
    Meridian    39    51    78   117   176   319   446
    preset      37    49    77   123   191   318   459
    error      -5%   -5%   -1%   +5%   +9%    0%   +3%
    ========  ====  ====  ====  ====  ====  ====  ====
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import statistics
import zlib
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from p2pcompute.errors import UsageError
from p2pcompute.simulation.avt import bounded_lines, open_lines, why_unread

LATENCIES: Final = ("lan", "lognormal", "king", "meridian", "regions")
"""The models that need no file."""
COORDINATES_SUFFIX: Final = ".syscoord"
COORDINATES_MAX: Final = 1_000_000
"""Lines of a file of coordinates."""
_QUANTILES: Final = 1024
_KEY_BITS: Final = 30
"""Two keys multiply to 60 bits, of which the middle ones serve as the hash of the pair: symmetric and cheap."""
_HASH_SHIFT: Final = 25


@dataclass(slots=True)
class Spot:
    """Where a machine is."""

    key: int
    """Odd, of 30 bits; two of them give the hash of the pair."""
    x_s: float = 0.0
    y_s: float = 0.0
    height_s: float = 0.0
    """Of the access line, one-way."""
    region: int = 0


def pair_hash(one: Spot, other: Spot) -> int:
    """Of two different spots in either order: 0 to 1023, equally often."""
    return one.key * other.key >> _HASH_SHIFT & _QUANTILES - 1


class LatencyModel(Protocol):
    """How far apart spots are."""

    def place(self, rng: random.Random, key: int) -> Spot:
        """Draw a spot, which takes its key from `draw_key`."""

    def delay_s(self, one: Spot, other: Spot) -> float:
        """One-way delay, the same in both directions."""


def latency_model(choice: str, *, median_s: float, sigma: float, noise: float) -> LatencyModel:
    """The model that a setting names.

    Args:
        choice: one of LATENCIES except "lan", or a path that ends in COORDINATES_SUFFIX.
        median_s: one-way, of "lognormal".
        sigma: of the underlying normal of "lognormal".
        noise: sigma of the noise of each pair in the other models.

    Raises:
        UsageError: there is no such model, or the file cannot be read.
    """
    if choice == "lognormal":
        return Lognormal(median_s, sigma)
    if choice == "king":
        return Coordinates(KING, noise)
    if choice == "meridian":
        return Coordinates(MERIDIAN, noise)
    if choice == "regions":
        return Regions(noise)
    if choice.endswith(COORDINATES_SUFFIX):
        return Coordinates(read_coordinates(Path(choice)), noise)
    allowed = f"{', '.join(LATENCIES)}, or a {COORDINATES_SUFFIX} file"
    raise UsageError(f"there is no latency model {choice!r}", "", f"choose one of {allowed}")


@functools.lru_cache(maxsize=16)
def lognormal_quantiles(median: float, sigma: float) -> tuple[float, ...]:
    """1,024 quantiles of the log-normal distribution, ascending."""
    normal = statistics.NormalDist()
    return tuple(median * math.exp(sigma * normal.inv_cdf((i + 0.5) / _QUANTILES)) for i in range(_QUANTILES))


def draw_key(rng: random.Random) -> int:
    return rng.getrandbits(_KEY_BITS) | 1


class Lognormal:
    """Every pair has its own delay; places mean nothing."""

    def __init__(self, median_s: float, sigma: float) -> None:
        self._delays_s = lognormal_quantiles(median_s, sigma)

    def place(self, rng: random.Random, key: int) -> Spot:
        return Spot(key)

    def delay_s(self, one: Spot, other: Spot) -> float:
        return self._delays_s[one.key * other.key >> _HASH_SHIFT & _QUANTILES - 1]


# --- coordinates ----------------------------------------------------------------------------------


class Coordinate(NamedTuple):
    """A Vivaldi coordinate.  One-way delay: the distance in the plane plus both heights."""

    x_ms: float
    y_ms: float
    height_ms: float


class Cluster(NamedTuple):
    """A Gaussian of a mixture, in ms."""

    weight: float
    x: float
    y: float
    sigma_x: float
    sigma_y: float
    correlation: float


@dataclass(frozen=True, slots=True)
class CoordinateFit:
    """A distribution of coordinates."""

    clusters: tuple[Cluster, ...]
    heights_ms: tuple[float, ...]
    """Quantiles at equal steps from 0 to 1; geometric between them."""

    def draw(self, rng: random.Random) -> Coordinate:
        cluster = rng.choices(self.clusters, cum_weights=tuple(accumulate(each.weight for each in self.clusters)))[0]
        u, v = rng.gauss(0.0, 1.0), rng.gauss(0.0, 1.0)
        step, part = divmod(rng.random() * (len(self.heights_ms) - 1), 1.0)
        low, high = self.heights_ms[int(step)], self.heights_ms[int(step) + 1]
        skew = cluster.correlation * u + math.sqrt(1.0 - cluster.correlation**2) * v
        return Coordinate(
            cluster.x + cluster.sigma_x * u, cluster.y + cluster.sigma_y * skew, low * (high / low) ** part
        )


KING: Final = CoordinateFit(
    (
        Cluster(0.431, 3.5, -2.9, 7.5, 7.2, -0.06),
        Cluster(0.191, 4.9, -56.4, 12.0, 8.8, 0.05),
        Cluster(0.148, 19.0, 14.5, 38.9, 59.8, 0.30),
        Cluster(0.116, 0.4, 23.5, 9.0, 5.2, -0.05),
        Cluster(0.084, -15.2, 81.9, 26.3, 15.7, 0.28),
        Cluster(0.029, -22.6, 20.6, 128.4, 81.9, 0.21),
    ),
    (
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
        0.9,
        1.0,
        1.2,
        1.4,
        1.6,
        2.0,
        2.4,
        2.8,
        3.2,
        3.8,
        4.2,
        4.7,
        5.2,
        5.9,
        6.4,
        7.1,
        7.9,
        8.6,
        9.3,
        10.1,
        10.9,
        12.2,
        13.2,
        14.8,
        16.8,
        18.9,
        22.4,
        27.1,
        35.0,
        46.5,
        61.4,
        74.1,
        86.8,
        291.6,
    ),
)
MERIDIAN: Final = CoordinateFit(
    (
        Cluster(0.378, 7.0, 7.3, 14.1, 10.0, 0.28),
        Cluster(0.179, 24.2, 13.2, 7.1, 7.2, 0.02),
        Cluster(0.173, -34.5, -11.0, 10.8, 13.5, -0.18),
        Cluster(0.134, 11.7, 8.1, 17.3, 21.3, 0.06),
        Cluster(0.108, 24.8, 12.8, 62.6, 45.7, 0.51),
        Cluster(0.027, -7.3, -6.0, 140.6, 121.0, 0.32),
    ),
    (
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
        1.0,
        1.1,
        1.4,
        1.6,
        2.0,
        2.4,
        2.8,
        3.2,
        3.7,
        4.3,
        5.0,
        5.7,
        6.2,
        6.9,
        7.6,
        8.4,
        9.4,
        10.4,
        11.6,
        13.0,
        14.4,
        15.8,
        17.4,
        19.3,
        21.5,
        23.8,
        26.7,
        31.5,
        38.5,
        57.7,
        99.3,
        442.7,
    ),
)


class Coordinates:
    """Machines at coordinates: drawn from a fit, or chosen from a list with equal chances."""

    def __init__(self, source: CoordinateFit | tuple[Coordinate, ...], noise: float) -> None:
        self._source = source
        self._noise = lognormal_quantiles(1.0, noise)

    def place(self, rng: random.Random, key: int) -> Spot:
        source = self._source
        x, y, height = source.draw(rng) if isinstance(source, CoordinateFit) else rng.choice(source)
        return Spot(key, x / 1000, y / 1000, height / 1000)

    def delay_s(self, one: Spot, other: Spot) -> float:
        distance = math.hypot(one.x_s - other.x_s, one.y_s - other.y_s)
        noise = self._noise[one.key * other.key >> _HASH_SHIFT & _QUANTILES - 1]
        return (distance + one.height_s + other.height_s) * noise


@functools.lru_cache(maxsize=4)
def read_coordinates(path: Path) -> tuple[Coordinate, ...]:
    """Read a `.syscoord` file: lines of ``id x y h height`` in ms, with ``#`` before comments.

    Raises:
        UsageError: it cannot be read or is no such file; names the line.
    """
    try:
        with open_lines(str(path), "utf-8") as file:
            lines = list(itertools.islice(bounded_lines(file), COORDINATES_MAX))
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        raise UsageError(
            f"the coordinates {path} cannot be read", why_unread(error, 0), "name a .syscoord file", code="scenario"
        ) from error
    found = [
        _read_coordinate(line.split(), f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if len(found) < 2:
        raise UsageError(f"{path} has {len(found)} coordinates", "two are the least", "name a .syscoord file")
    return tuple(found)


def _read_coordinate(words: list[str], where: str) -> Coordinate:
    fix = "a line reads: id x y h height, in ms, as in 0 25.5 9.4 h 1.4"
    if len(words) != 5 or words[3] != "h":
        raise UsageError(f"{where} is no coordinate", f"it reads {' '.join(words)[:80]!r}", fix)
    try:
        x, y, height = float(words[1]), float(words[2]), abs(float(words[4]))
    except ValueError as error:
        raise UsageError(f"{where} is no coordinate", str(error), fix) from error
    if not math.isfinite(x + y + height) or max(abs(x), abs(y), height) > 1e5:
        raise UsageError(f"{where} is no coordinate", "more than 100 s away", fix)
    return Coordinate(x, y, height)


# --- regions --------------------------------------------------------------------------------------


class Region(NamedTuple):
    name: str
    share: float
    """Of the machines."""
    rtt_ms: tuple[float, ...]
    """Median round trip to the regions up to and including itself, without access lines."""


REGIONS: Final = (
    Region("north america, east", 0.22, (25,)),
    Region("north america, west", 0.13, (65, 25)),
    Region("south america", 0.07, (120, 175, 40)),
    Region("europe", 0.32, (90, 145, 205, 25)),
    Region("africa", 0.02, (225, 285, 340, 155, 60)),
    Region("south asia", 0.05, (190, 220, 300, 120, 220, 40)),
    Region("east asia", 0.15, (150, 105, 260, 225, 350, 125, 50)),
    Region("oceania", 0.04, (200, 140, 310, 270, 400, 150, 110, 30)),
)
"""Assumed, not taken from a source: round trips of the size seen between data centres, to 5 ms; shares and the
round trips within a region are assumptions (where the computers of volunteers are, and how far apart)."""
ACCESS_MEDIAN_S: Final = 0.006
ACCESS_SIGMA: Final = 0.6
"""One-way delay of an access line, log-normal: 90 % between 2 and 16 ms.  An assumption."""


class Regions:
    """Machines in regions of the world: a table of round trips, access lines, and noise of each pair."""

    def __init__(self, noise: float) -> None:
        self._noise = lognormal_quantiles(1.0, noise)
        self._shares = tuple(accumulate(region.share for region in REGIONS))
        self._delays_s = tuple(
            tuple(REGIONS[max(i, j)].rtt_ms[min(i, j)] / 2000 for j in range(len(REGIONS)))
            for i in range(len(REGIONS))
        )  # fmt: skip

    def place(self, rng: random.Random, key: int) -> Spot:
        region = rng.choices(range(len(REGIONS)), cum_weights=self._shares)[0]
        height_s = ACCESS_MEDIAN_S * math.exp(ACCESS_SIGMA * rng.gauss(0.0, 1.0))
        return Spot(key, height_s=height_s, region=region)

    def delay_s(self, one: Spot, other: Spot) -> float:
        noise = self._noise[one.key * other.key >> _HASH_SHIFT & _QUANTILES - 1]
        return (self._delays_s[one.region][other.region] + one.height_s + other.height_s) * noise
