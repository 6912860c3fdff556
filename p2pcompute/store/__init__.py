"""What a node keeps: the layout of its durable tables.

`journal` says which keys and records there are; how tables are kept is the host's business (`host.interfaces.Store`).
"""
