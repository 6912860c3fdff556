"""``python -m p2pcompute.daemon``: a node in a process of its own, as `p2pc` starts it."""

from __future__ import annotations

import argparse
import sys

from p2pcompute.daemon.main import DaemonOptions, run_daemon


def main() -> int:
    """Run the node that the flags describe; returns the exit code."""
    parser = argparse.ArgumentParser(prog="p2pcompute.daemon", description="A p2pcompute node.")
    parser.add_argument("--ready-fd", type=int, help="descriptor that is told when the node is ready")
    parser.add_argument("--lifeline", type=int, help="descriptor at whose end the node stops")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting")
    parser.add_argument("--look", action="store_true", help="only show what is kept: run nothing, reach nobody")
    given = parser.parse_args()
    flags = dict(item.split("=", 1) for item in given.set if "=" in item)
    options = DaemonOptions(flags=flags, lifeline_fd=given.lifeline, ready_fd=given.ready_fd, is_onlooker=given.look)
    return run_daemon(options)


if __name__ == "__main__":
    sys.exit(main())
