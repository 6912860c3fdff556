"""Who a node is: its installation's Ed25519 key, delegations for embedded nodes, the key file.

Owns the signing key of this process and nothing else.  It promises that a secret key never leaves this
package except into its own file, that a key file is never overwritten, and that a key which moved to another
machine is not used there.

`keys` is pure; `files` keeps keys on disk.
"""
