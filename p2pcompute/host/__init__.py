"""What a node stands on.

A node touches the world only through the `Host` that it was given: clock, randomness, crypto, network,
storage, runner and probe.  `interfaces` and `runs` define the seam; the real implementations are beside
them, the simulated ones in `p2pcompute.simulation`.
"""
