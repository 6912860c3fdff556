"""Above raw packets and streams: who may talk, who is at the other end, and how much.

`datagrams` filters UDP by the network key's MAC and a rate per source; `handshake` proves both keys of a
connection; `channels` carries frames, requests and their replies.  Everything here stands on `host.interfaces`
and runs unchanged in the simulator.

Promises: a stranger gets no byte in answer; a peer is named only after it proved its key; every queue is
bounded; hostile bytes end at most the channel that they came on.
"""
