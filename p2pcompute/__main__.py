"""`python -m p2pcompute`: the command `p2pc`."""

from __future__ import annotations

from p2pcompute.cli.entry import main

if __name__ == "__main__":
    main()
