"""A world in one process: virtual time, an in-memory network, and hosts on which the real node code runs.

`loop` is the event loop, `network`, `access` and `streams` carry bytes, `storage` keeps them, `runner` runs simulated
tasks, and `host` assembles all of it into `Simulation` and `SimHost`, which know nothing of nodes.  On these, `mesh`
puts whole nodes; `world` runs them through a `population`, `faults`, `adversaries` and `workloads`, watched by
`invariants`.  `scenario` reads what is to be run, `study` runs it for many seeds, `shrink` makes a failure small.

Promise: the same seed and the same code give the same trace hash, whatever PYTHONHASHSEED is.
"""
