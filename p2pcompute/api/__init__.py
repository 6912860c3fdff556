"""The embedded library: a node inside the user's own process, behind `concurrent.futures`.

`embedded` runs the node in a thread of its own, `desk` takes calls to it and brings results back, `executor`, `maps`
and `jobs` are what people use.  What an application sees is named in `p2pcompute/__init__.py`.
"""
