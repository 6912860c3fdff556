"""The first process of the sandbox in which packages are installed: ``environment_box USER WORDS…``.

It gives up every right that it has, becomes USER (a number; "-": it is who it shall be) and then runs uv in its place.
It has the network of the machine, since it must reach a package index; it sees programs and libraries, the one
environment that it makes and the packages that were fetched for the same submitter before, and no key of the node.
"""

from __future__ import annotations

import os
import resource
import sys

from p2pcompute.execution import box_setup

_LIMITS = {resource.RLIMIT_CORE: 1, resource.RLIMIT_NPROC: 512, resource.RLIMIT_NOFILE: 4096}


def main() -> None:
    """Step down, then become the command."""
    user = None if sys.argv[1] == "-" else int(sys.argv[1])
    try:
        box_setup.step_down(user=user, limits=_LIMITS)
        os.execv(sys.argv[2], sys.argv[2:])
    except (box_setup.Broken, OSError) as error:
        os.write(2, f"error: the packages cannot be installed in a sandbox here: {error}\n".encode())
        os._exit(125)


if __name__ == "__main__":
    main()
