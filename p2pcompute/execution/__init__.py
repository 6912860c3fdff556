"""Running tasks: what a task is, how functions travel, and the processes that run them.

`spec` describes jobs and tasks; `functions`, `modules` and `code_key` are the submitter's side (pickling by
value, the user's own modules, content keys); `processes` is the node's runner with one warm worker process per
slot; `child*` is what runs in that process and imports as little as it can.

The node never unpickles anything and treats every byte of a worker process as hostile.
"""
