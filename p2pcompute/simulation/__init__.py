"""A world in one process: virtual time, an in-memory network, and hosts on which the real node code runs.

`loop` is the event loop, `network` and `streams` carry bytes, `storage` keeps them, `runner` runs simulated
tasks, and `host` assembles all of it into `Simulation` and `SimHost`.  Promise: the same seed and the same code
give the same trace hash, whatever PYTHONHASHSEED is.  Knows nothing of nodes.
"""
