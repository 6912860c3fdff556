"""The distributed hash table: who is in the group, and small signed records about it.

Owns the routing table, lookups, records kept for others, and the datagrams of all that.  Promises: a contact is
listed only after a reply that it signed and that matched our request; what `get` returns was signed by its
publisher, is the newest that the asked holders had, and has not expired; nothing a peer sends makes a table grow
beyond its named limit.

Read in this order: `contacts` (what is known of a peer), `messages` (what is on the wire), `routing_table`, `peers`,
`lookup`, `size`, `records`, `publications`, `tokens`, `puzzle`, `reach` (server or client), `index` (the cores, which
decide without I/O), `exchange` (signed requests and replies), `keeper` (records taken in and given out), `walk` (one
lookup performed), `queries` (find, get, put), `capacity` (ads and searches of the capacity index), `calls` (being
called, and calling for others), `joining` (whom to look for), `service` (`Dht`, what the node uses).

Source: Maymounkov and Mazières, "Kademlia: A Peer-to-peer Information System Based on the XOR Metric", 2002.
"""
