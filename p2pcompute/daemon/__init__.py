"""The daemon: a node of this installation in a process of its own, and the HTTP API over a unix socket to it.

Owns the control socket (0600, this user and root only), the versioned API under /v1 with its OpenAPI document, the
files of `--results`, the node's log and the order of starting and stopping.  Decides nothing about jobs.
"""
