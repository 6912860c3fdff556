"""Who runs what: the ledger of jobs, leases, and stealing.

`ledger` folds signed facts to states, `owner` holds the rule by which tasks are given away, `worker` the books of
one node's slots, `stealing` the parked requests; all four are pure.  `owner_service`, `worker_service` and
`service` perform what they decide.  Promises: an acknowledged job survives its owner's crash; a result is accepted
once per task and generation; the loss of a node is never counted against a task.
"""
