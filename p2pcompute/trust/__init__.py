"""Who belongs to a group and may do what.

Owns the group of this installation (founded at first start, alone until the first invitation), the admit
entries that make a member, and the open invitations.  It promises that nobody is a member without a chain of
signatures that ends at the founder, whose key is part of the group's id, and that nobody grants a role that
he lacks.

`groups` and `invites` decide; `group_file` is the only I/O of both.  What travels between the two
sides of a join is done in `p2pcompute.node`.
"""
