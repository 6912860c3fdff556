"""Work whose shape is known only when it runs: an integral that is halved where it is not exact enough yet.

A task returns further calls (`p2pcompute.call`) and is over: nothing waits for them, no slot is held meanwhile.  Then a
small graph: futures are arguments of other calls, and values go from task to task.
"""

from __future__ import annotations

import math
import sys

from p2pcompute import MeshExecutor, call


def area(low: float, high: float, tolerance: float) -> object:
    """Integrate sin(1/x) by Simpson's rule; two halves where the error is too large."""
    middle = (low + high) / 2
    whole, halves = simpson(low, high), simpson(low, middle) + simpson(middle, high)
    if abs(whole - halves) <= tolerance:
        return halves
    return call(math.fsum, [call(area, low, middle, tolerance / 2), call(area, middle, high, tolerance / 2)])


def simpson(low: float, high: float) -> float:
    return (high - low) / 6 * (f(low) + 4 * f((low + high) / 2) + f(high))


def f(x: float) -> float:
    return math.sin(1 / x)


def table(size: int) -> list[int]:
    return [n * n % 97 for n in range(size)]


def main(tolerance: float) -> None:
    with MeshExecutor() as executor:
        print(f"the integral of sin(1/x) from 0.05 to 1 is {executor.submit(area, 0.05, 1.0, tolerance).result():.6f}")
        numbers = executor.submit(table, 200_000)  # stays where it is made until somebody here asks for it
        low, high = executor.submit(min, numbers), executor.submit(max, numbers)
        print("width", executor.submit(lambda low, high: high - low, low, high).result())


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1e-6)
