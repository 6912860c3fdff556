#!/usr/bin/env python3
"""How long a double pendulum takes to flip, for every pair of starting angles: a picture of chaos.

On the command line, a task for each row of the picture:

    p2pc run -k sweep.py::row ::: $(seq -3 0.25 3)

and from Python, the same by `MeshExecutor`:

    python3 sweep.py

`row` uses the module beside this file. It travels along by itself: nothing is installed on the other computers.
"""

from __future__ import annotations

from collections import Counter

import double_pendulum

LIMIT_S = 8.0
ANGLES = [-3 + 0.25 * number for number in range(25)]
"""rad"""
SHADES = " .:-=+*#%@"
"""From "does not flip" over late to at once."""


def row(upper: float | str) -> str:
    """Return one row of the picture: a character for each starting angle of the lower arm.

    `p2pc run` gives what stands on the command line, so the angle may be text.
    """
    return "".join(shade(double_pendulum.first_flip_s(float(upper), lower, LIMIT_S)) * 2 for lower in ANGLES)


def shade(flip_s: float | None) -> str:
    if flip_s is None:
        return SHADES[0]
    return SHADES[max(1, round((1 - flip_s / LIMIT_S) * (len(SHADES) - 1)))]


def main() -> None:
    from p2pcompute import MeshExecutor

    with MeshExecutor(name="sweep") as mesh:
        job = mesh.start_map(row, ANGLES)
        for line in job:
            print(line)
        shares = Counter(future.info.node for future in job.futures)
    print("rows by node: " + ", ".join(f"{node} {count}" for node, count in sorted(shares.items())))


if __name__ == "__main__":
    main()
