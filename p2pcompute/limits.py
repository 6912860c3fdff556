"""Protocol limits: every bound that a peer or a user can run into has its name and reason here.

Settings that a person may change live in `config.py`; these are part of the protocol or protect the node.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# --- wire -----------------------------------------------------------------------------------------
CBOR_DEPTH_MAX: Final = 6
"""Nesting of a wire message.  The deepest of ours is 5 (envelope in a list in a body)."""
FRAME_BYTES_MAX: Final = 1 * MIB
"""One frame of a channel.  Larger things are blobs."""
DATAGRAM_BYTES_MAX: Final = 1200
"""Payload of one UDP datagram: fits the IPv6 minimum MTU of 1,280."""
ENVELOPE_BYTES_MAX: Final = FRAME_BYTES_MAX - 4 * KIB
"""One signed envelope; leaves room for the frame around it."""

# --- transport ------------------------------------------------------------------------------------
PROTOCOL_MIN: Final = 1
PROTOCOL_MAX: Final = 1
"""Range of wire protocol versions that this build speaks; negotiated in the channel handshake."""
PREAMBLE_BYTES: Final = 40
"""Group hint 4, wall time in ms 8, nonce 12, keyed BLAKE2b MAC 16."""
PREAMBLE_SKEW_S_MAX: Final = 300.0
"""A preamble older or newer than this is dropped: bounds replay, tolerates wrong clocks."""
HANDSHAKE_S_MAX: Final = 10.0
"""From accept to a proven key; then the connection is closed."""
HANDSHAKES_MAX: Final = 64
"""Unproven inbound connections at once; further ones are closed at accept."""
STRANGERS_MAX: Final = 16
"""Connections, proven or not, of those who have no secret of ours; for a further one the source that has most of them
makes room with its oldest."""
JOIN_LIFE_S: Final = 60.0
"""A joining channel is closed after this, whatever goes on: strangers may hold none for long."""
CHANNELS_MAX: Final = 1024
"""Open channels; an idle one is closed for a new one: of two to one peer, else the least recently used.  An owner gives
tasks to so many nodes by itself; further ones get them from those."""
FILES_OPEN_WANTED: Final = 4 * CHANNELS_MAX
"""Open files that a node asks its system for: many systems allow 1,024 or 256 unless they are asked."""
CHANNEL_IDLE_S: Final = 300.0
"""A channel without traffic that nobody needs is closed after this; it opens again when needed."""
CHANNEL_SPARE_S: Final = 10.0
"""The same of one of two to a peer that is not used: both nodes have dialled."""
CHANNEL_WRITE_BYTES_MAX: Final = 8 * MIB
"""Unsent bytes of one channel; a peer that does not read is cut off beyond it."""
CHANNEL_PING_S: Final = 10.0
"""Quiet time after which a channel is probed."""
CHANNEL_PING_S_MAX: Final = 900.0
"""While only probes pass, the time to the next doubles up to this."""
CHANNEL_ANSWER_S: Final = 3.0
"""A sign of life that was asked for on a channel so long ago is overdue, and the peer is shown as not seen: ten times
the round trip of a bad path, and what a busy machine may be late."""
CHANNEL_DEAD_S: Final = 30.0
"""Nothing heard on a channel for this long, nor since it was probed CHANNEL_PING_S after its start: it is closed."""
REQUESTS_IN_FLIGHT_MAX: Final = 1024
"""Unanswered requests on one channel."""
DATAGRAM_QUEUE_MAX: Final = 1024
"""Received datagrams that wait for us; further ones are dropped and counted (asyncio-dgram's queue has no bound)."""
SOCKET_BUFFER_BYTES: Final = 1 * MIB
DATAGRAM_RATE_PER_S_MAX: Final = 200.0
DATAGRAM_BURST_MAX: Final = 400.0
"""Datagrams per second and source address, before any signature is checked."""
RATE_SOURCES_MAX: Final = 4096
"""Source addresses whose rate is tracked; the oldest is forgotten."""
NEARBY_MAX: Final = 256
LAN_INVITES_MAX: Final = 32
"""Numbers of open invitations in one announcement."""
"""Nodes seen by LAN discovery that are remembered."""
PORT_ATTEMPTS_MAX: Final = 16
"""Tries to find one port number that is free on IPv4 and IPv6."""
PREAMBLE_S_MAX: Final = 3.0
"""From accept to the whole preamble, which a dialler sends at once; a silent connection is closed after this."""
REPLAY_NONCES_MAX: Final = 16_384
"""Preamble nonces remembered until they are too old to be replayed.  Only who has the key gets in; when full the
oldest is forgotten, because a replayed preamble gains a TLS handshake and nothing more."""
HANDSHAKE_BYTES_MAX: Final = 32 * KIB
"""One handshake message from a dialler that is not proven yet; an admit chain of ADMIT_CHAIN_MAX has about 3 KiB."""
HANDSHAKE_RATE_PER_S_MAX: Final = 50.0
HANDSHAKE_BURST_MAX: Final = 200.0
"""Admitted connections per second and source: a TLS handshake costs about a millisecond."""
CHANNELS_PER_PEER_MAX: Final = 16
"""Channels of one peer, of all purposes; further ones are refused as busy."""
DIAL_ADDRESSES_MAX: Final = 8
"""Addresses of one peer that are tried."""
DIAL_STAGGER_S: Final = 0.25
"""Head start of one address before the next is tried beside it (RFC 8305 section 5)."""
STREAM_BUFFER_BYTES: Final = 64 * KIB
"""TLS read buffer of a connection and the unit in which writes are handed to TLS."""
STREAM_UNREAD_BYTES_MAX: Final = 256 * KIB
"""Received bytes that nobody has read; then reading from the socket pauses."""
STREAM_UNSENT_BYTES_HIGH: Final = 1 * MIB
"""`drain` waits while more than this is unsent."""
STREAM_CLOSE_S: Final = 5.0
"""How long a closing connection may take to send what is queued."""
REQUESTS_SERVED_BYTES_MAX: Final = 16 * MIB
"""Bodies of one peer's requests that are being served; further ones are answered as busy."""
ERROR_TEXT_CHARS_MAX: Final = 1000
"""Length of the text of an error that a peer reports; the rest is cut off."""
JOIN_IDLE_S: Final = 30.0
"""A joining channel without traffic is closed after this: its other side is not a member."""

# --- DHT ------------------------------------------------------------------------------------------
DHT_K: Final = 20
DHT_ALPHA: Final = 5
"""Peers that a lookup waits for at once, each within its soft timeout."""
DHT_GET_ALPHA: Final = 4
"""The same of a get: with 30 % dead contacts and 5 % loss 7.5 requests instead of 8.5, in 1.8 median round trips
instead of 1.6; with 10 % dead 6.3 instead of 7.6, in 1.3 either way."""
DHT_GET_ALPHA_MAX: Final = 20
"""A get asks as many at once as have answered it without ending it, from DHT_GET_ALPHA up to this: most gets end before
the fifth answer, those among hostile nodes do not."""
DHT_PUT_ALPHA: Final = 20
"""The same of a put, when the next one is so near that it is to keep the record: it is asked in any case."""
DHT_PUT_K: Final = 16
"""A put goes to all nodes within the distance at which k are expected, and to so many that answer at least."""
DHT_PUT_ENOUGH: Final = 0.75
"""A put to k nodes or more ends when this share of them have confirmed it: the last few are not waited for."""
DHT_PING_S: Final = 10.0
"""Below k peers everybody is pinged this often, so that a dead peer is gone within a minute."""
DHT_NEWS_ASKED: Final = 2
"""Peers that a lookup among up to k contacts asks, of those that were heard of within DHT_PING_S: each of them knows
everybody, and one may lie or be a newcomer itself."""
DHT_FAILURES_MAX: Final = 2
"""Unanswered probes after which a contact is evicted."""
DHT_REQUEST_S: Final = 2.0
"""Hard timeout of one DHT request."""
DHT_BODY_BYTES_MAX: Final = DATAGRAM_BYTES_MAX - 12
"""One signed DHT statement: a datagram less group hint (4) and MAC (8)."""
DHT_CHUNK_BYTES: Final = 1000
"""Part of a record or of a list of records in one statement; leaves room for its head and signature (140)."""
DHT_BUCKET_SIZES: Final = (64, 32)
"""Contacts in the two farthest buckets; the others hold k.  With k everywhere, 50 nodes could not all know one another
(half of them share the farthest bucket).  With 128, 64, 32 a table of 10,000 nodes has 350 instead of 250 contacts."""
DHT_RANGE_PER_BUCKET_MAX: Final = 2
DHT_RANGE_PER_TABLE_MAX: Final = 10
"""Contacts of one /24 (IPv6: /48) in a bucket and in the table of an open group with k contacts and more: identities
cost nothing there, addresses do.  Ethereum's discv5 has the same."""
DHT_REPLACEMENTS_MAX: Final = 2
"""Verified contacts that wait for a place in a full bucket; the one heard of longest ago goes."""
DHT_SOFT_S_MIN: Final = 0.15
DHT_SOFT_S_MAX: Final = 1.0
"""Bounds of the soft timeout, after which a request is sent again and a lookup looks past the peer."""
DHT_LOOPBACK_SOFT_S_MIN: Final = 0.05
"""The same for looking past a peer on this machine, where a round trip takes a millisecond unless the machine is busy,
and then the estimate grows."""
DHT_LOOPBACK_RESEND_S_MIN: Final = 0.1
"""A request to such a peer is sent again so soon: while a lookup still waits for the peer (three soft timeouts), or the
loss of one answer, as on a machine that is flooded, would cost the lookup that peer."""
DHT_LINK_DOWN_CONTACTS: Final = 10
"""So many different contacts silent in a row mean that our own link is down: nobody is evicted."""
DHT_REQUESTS_MAX: Final = 1024
"""Unanswered DHT requests of this node; a further one fails at once."""
DHT_VERIFICATIONS_MAX: Final = 64
"""Unknown senders that are being pinged back; further ones are left for their next request."""
DHT_LOOKUP_CANDIDATES_MAX: Final = 256
"""Peers that one lookup remembers; the farthest unasked one goes."""
DHT_LOOKUP_REQUESTS_MAX: Final = 128
"""Peers that one lookup asks: ends a lookup that is fed made-up peers without end."""
DHT_SEEDS: Final = 2 * DHT_K
"""Own contacts from which a lookup starts: more than k, because peers name dead ones among the k nearest, and in a
group of 100 nobody then tells of the next ones (recall of 0.96 with 10 % dead from k, 1.0 from 2 k; 22 and 26
requests)."""
DHT_PATHS: Final = 4
"""Paths of one lookup that share no peer: whoever misleads one does not mislead the others."""
DHT_PATH_REQUESTS_MAX: Final = DHT_LOOKUP_REQUESTS_MAX // DHT_PATHS
"""Peers that are asked on one path."""
DHT_PATH_ROOTS: Final = 3
"""Seeds asked on each path, whoever is named as nearer: with f of all nodes hostile, f^12 of lookups are misled
(0.2 % at f = 0.6); with none, f^5 were, because those that are asked first name all others (8 % at f = 0.6)."""
DHT_FOUND_ENOUGH: Final = 2
"""Holders whose valid answers end a get: the second may have a newer record.  A miss runs to the k nearest."""
DHT_TOKEN_ROTATE_S: Final = 300.0
"""A new secret for write tokens; those made with the one before are accepted as well, for as long again."""
DHT_HANDERS: Final = 2
"""Of all who keep a record, so many of the nearest to its key hand it to a newcomer to whom it belongs."""
DHT_HAND_ON_MAX: Final = 64
"""Records that one node hands to one newcomer."""
DHT_NEWCOMERS_MAX: Final = 64
"""Newcomers that wait for what may be handed to them; further ones get it by the next refresh of their publishers."""
DHT_HAND_ON_S: Final = 5.0
"""Newcomers are given their records so much later: then most of those who are nearer know them too."""
DHT_LOST_MAX: Final = 32
DHT_LOST_S_MAX: Final = 3600.0
"""Evicted contacts that are tried again now and then, and for how long: two nodes whose link was down meet again."""
DHT_LOST_RETRY_S_MAX: Final = 300.0
DHT_STRAY_S: Final = 20.0
DHT_STRAY_S_MAX: Final = 3600.0
"""An address at which somebody was once is tried again so often, one after the other, for as long as the node runs; the
more contacts there are, the more rarely: else ten thousand nodes would call their founder 500 times a second."""
DHT_PUBLICATIONS_MAX: Final = 256
"""Records that one node keeps alive: as many as others keep of it (RECORDS_PER_PUBLISHER_MAX)."""
DHT_REPUBLISH_S_MIN: Final = 60.0
"""A record that nobody took is put again so much later."""
DHT_CLIENTS_MAX: Final = 64
"""Peers that nobody can reach from outside, and that a node of a group of up to k servers knows as they call it."""
DHT_MAPPING_S: Final = 300.0
"""After so long without a datagram to it, no NAT lets a host in any more (RFC 4787: two minutes at least)."""
DHT_PROOFS: Final = 2
"""Address ranges from which a node was called unasked, so that it is reachable."""
DHT_CALLERS: Final = 3
"""Peers that are asked to call a node: one more than needed, as datagrams are lost."""
DHT_CALL_WAIT_S: Final = 1.0
"""How long their calls are waited for: a newcomer behind a NAT looks around so much later."""
DHT_CALL_S: Final = 600.0
DHT_CALL_FAILURES_MAX: Final = 3
"""A server has itself called so often; when so many times in a row nobody came, it is a client."""
DHT_CALLS_MAX: Final = 32
"""Requests to have somebody called, or to call, that a node serves in DHT_PING_S; further ones are told that nobody
will: whoever forges the address of another makes few nodes call it, once each."""
DHT_STRANGERS_BURST: Final = 1000.0
DHT_STRANGERS_PER_S: Final = 500.0
"""Requests from all who are not contacts at their address, together, whose signature is looked at: whoever has the
group's key and forges addresses takes a quarter of a core, and what contacts ask and answer goes on."""
DHT_UNASKED_BURST: Final = 6.0
DHT_UNASKED_PER_S: Final = 0.2
"""Datagrams to a source of addresses that has never answered: one request with all its resends, then one in 5 s,
whoever names that address, and how often.  So a node brings 8 datagrams in 10 s upon a victim, each shorter than
500 bytes, besides the answers to requests from a forged source, which are no longer than three times these."""
DHT_ANSWERED_MAX: Final = 4096
"""Sources that are known to have answered, and sources that have not; the longest ago is forgotten."""
DHT_SENT_MAX: Final = 512
DHT_WORDS_MAX: Final = 64
"""Hosts that were sent to lately, and address ranges of which it is kept how they see this node; the oldest goes."""
DHT_DEPARTED_MAX: Final = 256
"""Runs of nodes that said goodbye; what arrives late from them is dropped."""
DHT_JOIN_ADDRESSES_MAX: Final = 256
"""Addresses pinged by one join, and remembered for the next try."""
DHT_REFRESH_SMALL_S: Final = 60.0
DHT_REFRESH_S: Final = 1800.0
"""Interval of the lookups that keep the table complete: below k contacts, and above."""
DHT_GOODBYE_S: Final = 0.5
"""How long a leaving node waits for its goodbyes to be acknowledged."""
DHT_PUT_PARTS_MAX: Final = 2
DHT_PARTIAL_PUTS_MAX: Final = 64
"""Puts of which one part has arrived; the oldest is forgotten."""
RECORD_VALUE_BYTES_MAX: Final = 1000
RECORD_SALT_BYTES_MAX: Final = 64
RECORDS_MAX: Final = 4096
"""Records kept for others; when full the one that expires first goes."""
RECORD_TTL_S_MAX: Final = 2 * 3600.0
AD_TTL_S: Final = 900.0
"""Life of an ad; in a large group as long as its node has been up, if that is longer; at most RECORD_TTL_S_MAX."""
RECORDS_PER_PUBLISHER_MAX: Final = 256
"""Records of one publisher kept here; when it has more, its own that expires first goes: nobody fills a store alone."""
RECORDS_PER_KEY_MAX: Final = 64
"""Publishers kept under one key; when full the one that expires first goes."""
RECORDS_REPLY_BYTES_MAX: Final = 16 * KIB
"""What a get from one holder returns; further records are left out, those that expire first before others."""
RECORD_BYTES_MAX: Final = RECORD_VALUE_BYTES_MAX + RECORD_SALT_BYTES_MAX + 256
"""A record in its envelope."""
RECORD_SKEW_S_MAX: Final = 300.0
"""A record issued further in the future than this is refused."""
CONTACTS_SAVED_MAX: Final = 64

# --- capacity index -------------------------------------------------------------------------------
CLASS_BYTES: Final = 8
"""What a node has, a bit for each common feature; every node knows it of its contacts."""
TUPLE_BYTES: Final = 24
"""Class and a filter of the node's labels: what a registrar needs to leave out who cannot fit."""
INDEX_RARE_SHARE: Final = 0.02
"""A feature that a larger share of the contacts has is not advertised: contacts that have it are found by their class
(at 2 % each peer that is asked knows five of them)."""
INDEX_REGISTER_PER_LEVEL: Final = 3
INDEX_QUERY_PER_LEVEL: Final = 5
"""Peers at each distance from a feature's key that keep an ad, and that a search asks (TopDisc: 5, 5 or 3, 5)."""
INDEX_LEVELS_MAX: Final = 10
"""Distances, each half of the one before, over which ads are spread: more put them where they are hardly ever found."""
INDEX_ADS_PER_NODE_MAX: Final = 4
"""Features that a node advertises: each costs some thirty messages in each half of an ad's life."""
INDEX_ADS_MAX: Final = 2048
"""Ads kept for others (500 bytes each); of further ones some are refused."""
INDEX_ADS_PER_KEY_MAX: Final = 128
"""Ads under one key: a feature that more have is not rare, and a full table answers any search."""
INDEX_ADS_PER_SOURCE_MAX: Final = 16
"""Ads of one installation, and in an open group of one address range: a few more than an honest one has here."""
INDEX_TAKEN_MAX: Final = 16
"""Nodes in one answer to a search: two of them do not fill a search for 30."""
INDEX_CONTACTS_MAX: Final = 24
"""Nodes and contacts in an answer to a search, as many as fit a datagram: who has few that fit names more contacts."""
INDEX_REGISTERED_CONTACTS_MAX: Final = 10
"""Contacts in an answer to a registration, which is no longer than three times the registration."""
INDEX_ALPHA: Final = 8
"""Peers that a search or registration waits for at once, each within its soft timeout."""
INDEX_REQUESTS_MAX: Final = 96
"""Peers that one search or registration asks."""
INDEX_WANT_MAX: Final = 256
"""Nodes that one search looks for."""

# --- seeds (DNS) ----------------------------------------------------------------------------------
DNS_RECORDS_MAX: Final = 64
"""Records of one answer that are looked at; further ones are left out."""
DNS_ANSWER_BYTES_MAX: Final = 1232
"""What name servers are asked to keep to (DNS flag day 2020: fits an IPv6 packet); for a longer answer they refer to
TCP, which is not used."""
DNS_QUERY_S_MAX: Final = 5.0
"""One question, over all name servers and repetitions."""
DNS_SERVERS_MAX: Final = 4
SEEDS_MAX: Final = 8
"""Seeds in the settings."""
SEED_S_MAX: Final = 10.0
"""All questions about one seed; what was found until then is used."""
SEED_TARGETS_MAX: Final = 8
"""Host names of one seed that are looked up, those of the best priority first."""
SEED_ADDRESSES_PER_TARGET_MAX: Final = 4
SEED_ADDRESSES_MAX: Final = 32
"""Addresses of one seed; further ones are left out."""
SEED_TEXTS_MAX: Final = 8
SEED_TEXT_BYTES_MAX: Final = 512
"""TXT records of one seed, and bytes of one; further and longer ones are ignored."""
SEED_TTL_S_MIN: Final = 60.0
SEED_TTL_S_MAX: Final = 86_400.0
"""An answer is used again for its TTL, within these."""
SEED_PATIENCE_S: Final = 3.0
"""Saved contacts, first contacts and the local network have so long to answer before a seed is asked: more than
DHT_REQUEST_S."""
SEED_RETRY_S_MIN: Final = 10.0
SEED_RETRY_S_MAX: Final = 900.0
"""Pause between two rounds of questions to seeds while nobody answers, doubled each time."""

# --- identity -------------------------------------------------------------------------------------
PAIR_KEYS_CACHED_MAX: Final = 1024
"""Keys shared with one peer each that are kept in memory: more than a routing table has contacts; 250 bytes each."""
SIGNING_KEYS_CACHED_MAX: Final = 8
"""Expanded signing keys kept in memory: a process signs with its own key and perhaps one session's."""
DELEGATION_TTL_S_MAX: Final = 400 * 86400.0
"""A delegation outlives the retention of its jobs; longer than a year's job and a month is a mistake."""
DELEGATION_BYTES_MAX: Final = 1024
JOB_AGE_S_MAX: Final = DELEGATION_TTL_S_MAX
"""An older job is not begun anywhere any more: what was signed once is not run for ever."""
JOB_SKEW_S_MAX: Final = 300.0
"""A job from further in the future is not begun; tolerates clocks that differ."""
MOMENT_S_MIN: Final = 946_684_800.0
MOMENT_S_MAX: Final = 7_258_118_400.0
"""The years 2000 to 2199, Unix seconds: other nodes' moments outside them are unknown, or refused.  Every calendar has
them, and moments that lie RUNTIME_S_MAX later."""
RUNTIME_S_MAX: Final = 10 * 365 * 86400.0
"""No attempt takes longer; what another node says beyond is cut."""
CORES_MAX: Final = 4096
"""Of a machine: an attempt has used no more CPU time than so many at once."""
RUNTIME_DRIFT_MAX: Final = 1.01
"""How much longer an attempt may have taken by the clock of its node than by that of who lent the task."""
ROLES_MAX: Final = 16
"""Roles in one list; this build knows four, later ones may know more."""
ROLE_CHARS_MAX: Final = 32
PRIVATE_FILE_BYTES_MAX: Final = 64 * KIB
"""A key or group file; ours have less than 16 KiB."""

# --- groups ---------------------------------------------------------------------------------------
ADMIT_CHAIN_MAX: Final = 8
"""Admit entries from the founder to a member."""
ADMIT_TTL_S: Final = 7 * 86400.0
INVITES_OPEN_MAX: Final = 32
INVITE_TTL_S: Final = 600.0
INVITE_USES_MAX: Final = 1000
JOIN_FAILURES_MAX: Final = 3
"""Wrong proofs on one invitation before it is void."""
INVITE_NUMBER_MAX: Final = 9999
INVITE_NUMBERS_CHOICE: Final = 90
"""Free numbers of which one is drawn: two digits as a rule."""
INVITE_WORDS_MIN: Final = 3
"""Words of a code: 24 bits, of which JOIN_FAILURES_MAX guesses find 1 in 5.6 million."""
INVITE_WORDS_MAX: Final = 6
INVITE_NEWS_MAX: Final = 32
"""Wrong tries that are remembered for the inviter to see."""
MEETINGS_MAX: Final = 64
"""Key exchanges over words that have begun; the oldest is forgotten."""
MEETINGS_MET_MAX: Final = 1024
"""Channels of which it is known that they have had their exchange: all that can have begun in JOIN_LIFE_S."""
WORDS_GRACE_S: Final = 60.0
"""An invitation by words that has ended says so for so long; then strangers are not answered any more."""
MEETINGS_PER_S: Final = 8.0
MEETINGS_BURST: Final = 16
"""Of all sources together.  Each costs the inviter 20 ms of processor time; further ones are refused for the moment."""
MEETINGS_PER_S_OF_SOURCE: Final = 0.5
MEETINGS_BURST_OF_SOURCE: Final = 8
"""Of one address, or of one /64 of IPv6: who asks all the time keeps nobody else out."""
HELLO_TEXT_CHARS_MAX: Final = 32
"""Of a version or a kind of machine that a peer says of itself: the longest that is shown."""
HELLO_BYTES_FIELD_MAX: Final = 32
"""Of a life, or a digest, that a peer says of itself: a whole SHA-256."""
HELLO_SLOTS_MAX: Final = 65_536
"""Slots that a peer may say it has: far more than a machine has cores, and sums of many peers stay small."""
PYTHON_NUMBER_MAX: Final = 999
"""Parts of the version of a peer's Python."""
PSK_BYTES_MIN: Final = 16
"""Strangers may guess 8 times a second (MEETINGS_PER_S): a key that a person made up must withstand years of that."""
PSK_BYTES_MAX: Final = 1024
PINS_MAX: Final = 256
"""Keys that are believed at first sight: what fits into PRIVATE_FILE_BYTES_MAX; further ones are refused."""
PIN_CHARS_MAX: Final = 128
AUTHORIZED_KEYS_BYTES_MAX: Final = 256 * KIB
AUTHORIZED_KEYS_MAX: Final = 2048
VOUCHER_BYTES_MAX: Final = 512
VOUCHER_TTL_S: Final = 600.0
VOUCHER_SKEW_S_MAX: Final = 300.0
"""A statement of an OpenSSH key about an installation; tolerates clocks that differ."""
GROUP_NAME_CHARS_MAX: Final = 64
ADMIT_ENTRY_BYTES_MAX: Final = 1024
"""One admit entry: under 400 bytes plus the group's name."""
ADMIT_SKEW_S_MAX: Final = 300.0
"""An admit entry from further in the future is refused; tolerates clocks that differ."""
ADMIT_RENEW_S_MAX: Final = 90 * 86400.0
"""An installation that was off for this long after its entry ended is renewed; later it needs an invitation."""
INVITES_CLOSED_MAX: Final = 32
"""Ended invitations that are remembered, so that a late joiner hears why; the oldest is forgotten."""
INVITE_TTL_S_MAX: Final = 7 * 86400.0
TOKEN_CHARS_MAX: Final = 2048
TOKEN_ADDRESSES_MAX: Final = 8
"""Addresses of the inviter in one token."""
NODE_NAME_CHARS_MAX: Final = 64
LOG_ENTRIES_MAX: Final = 2048
"""Removals and the like in a group's log, which nobody ever forgets; a further one is refused, and a group in which so
many were removed is made anew."""
LOG_FOUNDER_ENTRIES: Final = 256
"""Of them the last ones are for the founder and his heirs, and half of these for the founder alone, and as large a part
of GROUP_LOG_BYTES_MAX: an administrator that fills the log can still be removed."""
GROUP_LOG_BYTES_MAX: Final = 3 * MIB
LOG_ENTRY_BYTES_MAX: Final = 8 * KIB
"""One entry: under 400 bytes, the reason, 8 heads and up to LOG_ACCEPTS_MAX digests of 16 bytes."""
LOG_ACCEPTS_MAX: Final = 256
"""Admissions by a member that stay good when it is removed; those that it let in beyond need a new invitation."""
LOG_HEADS_MAX: Final = 8
"""Entries that another one names as known."""
PROOFS_MAX: Final = 256
"""Installations of which a proof is kept that they lied."""
PROOF_BYTES_MAX: Final = 64 * KIB
"""One proof: two messages of a worker about results, of some 50 bytes each."""
PROOFS_BYTES_MAX: Final = 768 * KIB
"""All proofs: they go to a peer in one message.  Divided by PROOFS_MAX it is what always has room."""
LOG_RECORDS_MAX: Final = 16
"""Records in which one member publishes the end of the group's log: 15 KiB, some twenty entries."""
LOG_KEEPERS_DRAWN: Final = 8
"""Members beside the founder and administrators that publish it."""
LOG_KEEPERS_ASKED: Final = 4
"""Of those, how many a node asks at a time that meets no administrator."""
ROSTER_MAX: Final = 4096
"""Members whose chain is known; the one learned longest ago goes."""
NAMES_SAVED_MAX: Final = 1024
"""Members whose last name is stored, about 60 KiB, each ten minutes: more than anybody looks for by name."""
ROSTER_SHARED_MAX: Final = 64
"""In groups of up to so many all members know all others; in larger ones each knows those that it has met, because
every one would send some 700 bytes about every other."""
GROUP_ACCEPT_CHARS_MAX: Final = 200
"""The condition on jobs in a group's policy: two that were made at once are still one expression."""
OPEN_PUZZLE_BITS: Final = 20
"""Of the work at the door of an open group: a million hashes, about a second of a core."""
OPEN_PUZZLE_BITS_MAX: Final = 24
KEYS_FORMER_MAX: Final = 16
"""Network keys from before that are still accepted, so that who was away finds back; each removal makes one."""
KEY_GRACE_S: Final = 14 * 86400.0
"""How long a former network key is accepted: twice the life of an admission."""
KEYED_SOURCES_MAX: Final = 256
"""Addresses that still use a former network key, and are answered under it; the one heard longest ago is forgotten."""
LEVELS_MAX: Final = 1024
"""Installations of which somebody has said here what they are; a further one takes the place of one that was said to be
a plain member, or is refused."""
REMOVALS_NOTED_MAX: Final = 8
"""Removals of an installation that a level names as known: each but concurrent ones knows those before it."""
OWN_MACHINES_TOLD_MAX: Final = 256
"""Computers of one owner that they tell each other."""
REASON_CHARS_MAX: Final = 200
"""Why somebody was blocked or removed."""
TRUST_FILE_BYTES_MAX: Final = 4 * MIB
"""The file of levels: LEVELS_MAX notes of up to 1.2 KiB. """

# --- verification ---------------------------------------------------------------------------------
VERIFY_WORKERS_MAX: Final = 20_000
"""Workers of one submitter that are remembered, banned ones too; then no newcomer is let in."""
VERIFY_WINDOWS_KEPT: Final = 8
"""Past windows whose results can still be revoked: a week, or 160,000 tasks, that are kept with all their claims."""
VERIFY_RULES_MAX: Final = 64
"""Different demands on correctness (`--error-rate`, `--replicas`, `--verify`) of one owner's jobs; then members get no
tasks of jobs with further ones."""
VERIFY_HELD_BYTES_MAX: Final = 256 * MIB
"""Results of members that wait to be believed; then members begin no further tasks."""
VERIFY_UNASKED_BYTES_MAX: Final = 32 * MIB
"""When so much of these waits, results of tasks that a member was not lent, or no longer, are refused, and counted."""
VERIFY_LENDS_PER_TASK: Final = 64
VERIFY_LENDS_FREE: Final = 10_000
"""So many lendings to members, and claims of them, are remembered of a job: the first for each of its tasks, the second
besides.  Then members get no more of it, and trusted nodes go on.  Two a task are usual, REPLICAS_MAX possible."""
VERIFY_KEPT_BYTES_MAX: Final = 64 * MIB
"""Inputs of tasks whose results were accepted and may still be revoked; the oldest are read from the journal again."""
ANSWERED_MAX: Final = 20_000
"""Leases of which a worker remembers how it answered them, 6 MiB of memory; then all are forgotten, and it signs as in
another life (`scheduler/answers.py`)."""
EVIDENCE_MAX: Final = 64
"""Remarkable events that are kept of one node."""
REPLICAS_MAX: Final = 32

# --- resources ------------------------------------------------------------------------------------
ATTRIBUTES_MAX: Final = 256
"""Attributes of one node; about 30 are known to this build, the rest is for labels and plugins."""
ATTRIBUTE_NAME_CHARS_MAX: Final = 64
ATTRIBUTE_TEXT_CHARS_MAX: Final = 256
ATTRIBUTE_WORDS_MAX: Final = 64
"""Words of one attribute: applications, labels, Python minors."""
ATTRIBUTES_BYTES_MAX: Final = 32 * KIB
"""All attributes of one node, encoded; those of a usual machine have 0.5 KiB.  At most labels may have 11 KiB, plugins'
8 KiB, all others 6 KiB."""
ATTRIBUTE_LIFETIME_S_MAX: Final = 366 * 86400.0
NODES_KNOWN_MAX: Final = 1024
NODES_KNOWN_BYTES_MAX: Final = 1 * MIB
"""Descriptions of other nodes that are kept, in bytes on the wire; the one heard of longest ago goes.  In memory usual
ones take ten times as much, the worst eighteen times."""
QUESTION_WORDS_MAX: Final = 32
"""Applications about which one question may be."""
TOLD_MAX: Final = 32
"""Nodes that hear at once when an application has come or gone here about which they had asked: all of their words
(QUESTION_WORDS_MAX each) are looked for every few seconds, in a thread."""
QUESTION_WORD_CHARS_MAX: Final = 64
QUESTION_WAIT_S_MAX: Final = 60.0
"""How long a query may wait for its answer at the asked node; who wants to wait longer asks again."""
QUESTIONS_WAITING_MAX: Final = 256
QUESTIONS_WAITING_PER_PEER_MAX: Final = 16
"""Queries that wait here; further ones are refused as busy and ask again later."""
QUESTION_LANES: Final = 32
"""Nodes that are asked at the same time for one question."""
QUESTION_ASKED_MAX: Final = 256
"""Nodes that are asked for one question: a quarter of CHANNELS_MAX, because each needs a channel."""
FIND_S_MAX: Final = 30.0
"""How long one question may take: who waits for a node sets a trigger."""
EXPRESSION_CHARS_MAX: Final = 500
"""One expression over attributes; peers send them.  The worst of this length takes 5 ms to compile and 11 ms to
evaluate (both grow with its square)."""
EXPRESSION_DEPTH_MAX: Final = 16
"""Brackets inside one another."""
EXPLAINED_NODES_MAX: Final = 200
"""Nodes in one explanation, each asked and shown; of more only their number is told."""
REQUIREMENTS_MAX: Final = 16
"""`--require`, and `--prefer`, of one job."""
NODES_CHOSEN_MAX: Final = 64
"""`--on` and `--not-on` of one job."""
REQUIREMENT_CHARS_MAX: Final = 1000
"""All of them together: bounds what a job of a peer costs to compile, and each look at a node, to about 25 ms."""
EXPRESSION_LOOPS_MAX: Final = 2
"""`exists`, `all`, `exists_one`, `filter` in one expression, none inside another."""
EXPRESSION_PATTERNS_MAX: Final = 2
"""Uses of `matches`: each evaluation compiles the pattern again."""
EXPRESSION_PATTERN_CHARS_MAX: Final = 64
EXPRESSION_PATTERN_ESCAPES_MAX: Final = 8
"""Backslashes in a pattern: a Unicode class like \\w costs 0.5 ms each time."""

# --- scheduler ------------------------------------------------------------------------------------
VICTIMS_MAX: Final = 8
"""Peers at which an idle node parks a steal request."""
VICTIMS_LARGE_MAX: Final = 2
"""The same in a group of more than k: an open channel costs memory at both ends, and with one alone work should
hardly spread from thief to thief (every victim is then parked at by one other on average)."""
DIAL_COURTESY_S: Final = 1.0
"""How long a node leaves it to an idle peer with a smaller key to dial: hearing of each other and a handshake take half
a second on the WAN.  Between 10 nodes that start together there are 44 channels instead of 80."""
PARK_S: Final = 3600.0
"""Life of a parked steal request; renewed at half.  It ends earlier with its channel, or when it is taken back."""
PARKED_MAX: Final = 4096
"""Steal requests parked here; further ones are refused with the reason 'full'."""
GRANTS_PER_S_MAX: Final = 450.0
"""Grants of an owner to other nodes while there are very many: three messages to it each."""
GRANT_BURST_S: Final = 0.1
"""So much of a second's grants may leave at once."""
GRANT_ACK_S: Final = 1.0
"""A grant that is not acknowledged within this returns to the victim."""
GRANT_TASKS_MAX: Final = 512
MANIFEST_S: Final = 3600.0
"""For how long workers may give on what a coordinator has given them; what waits longer is done where it is."""
MANIFEST_BYTES_MAX: Final = 24 * KIB
"""Of GRANT_TASKS_MAX tasks: 40 bytes each, and the signature."""
GRANT_BYTES_MAX: Final = 768 * KIB
"""Task payloads in one grant; keeps it inside a frame."""
GRANT_ENVELOPE_BYTES_MAX: Final = 192 * KIB
"""A job's envelope up to this travels in a grant, beside GRANT_BYTES_MAX of payloads and their heads; a larger one is
asked for."""
BATCH_TARGET_S: Final = 1.0
"""A grant is about this much work for the thief, times max(1, workers / 500)."""
LEASE_S_MIN: Final = 30.0
LEASE_BATCH_FACTOR: Final = 3.0
"""Lease = max(LEASE_S_MIN, 3 × expected batch time)."""
HEARTBEAT_FRACTION: Final = 1 / 3
HEARTBEAT_PACES: Final = 2.0
"""Where there are so many workers that their owner sets the pace of results, heartbeats come half as often as these."""
PEER_LOST_GRACE_S: Final = 5.0
"""After a channel broke: how long its node may take to come back before its leases end."""
RECOVERY_GRACE_S: Final = 3.0
"""After an owner's restart: workers may first say what they still hold."""
POISON_NODES: Final = 3
"""A task whose runner died on so many nodes (or attempts, when there are fewer nodes) has failed."""
ATTEMPTS_MAX: Final = 100
"""Attempts of one task over its life, whatever ended them."""
REFUSALS_FREE: Final = 4
"""A node that has not begun so many tasks of a job in a row (it refuses them, or cannot) is given none of it for a
while: fewer may have to do with those tasks alone."""
REFUSED_S_MIN: Final = 1.0
REFUSED_S_MAX: Final = 60.0
"""How long: doubled each time that the next one is not begun either, up to this."""
REFUSALS_MAX: Final = 10
"""A task that is refused as one of so many in a row, which takes a minute, has failed where no other node may run
it."""
JOB_TASKS_MAX: Final = 100_000_000
TASK_PAYLOAD_BYTES_MAX: Final = 256 * KIB
"""Inline part of a task.  Larger arguments travel as blobs."""
INLINE_BYTES_MAX: Final = 64 * KIB
"""Arguments, values and output up to this travel in the message; larger ones are blobs."""
RESULTS_BATCH_BYTES_MAX: Final = 768 * KIB
RESULTS_BATCH_MAX: Final = 512
CLAIMS_BYTES_MAX: Final = 32 * KIB - 128
"""A worker's signature under so many claims of up to 61 bytes; two of them are a proof, whatever else is in them."""
JOBS_ACTIVE_MAX: Final = 4096
PRIORITY_MAX: Final = 1000
"""Priorities of jobs lie between this and its negative."""
JOBS_KNOWN_MAX: Final = 1024
"""Envelopes of others' jobs that a worker remembers, and that an owner remembers having sent to one peer."""
PEERS_MET_MAX: Final = 64
"""Members that are no contacts of the DHT, known from a channel only."""
PEERS_MAX: Final = 8192
"""Members that a node can name, ask for work or offer some."""
JOB_NAME_CHARS_MAX: Final = 200
NO_OUTPUT: Final = 1 << 58
"""What comes after so many bytes of output: nothing."""
REQUEST_NAME_BYTES: Final = 16
"""Random bytes that name a submission: so many that no two are alike."""
REQUEST_NAME_CHARS_MAX: Final = 64
SUBMISSIONS_REMEMBERED: Final = 10_000
"""The newest; who repeats one does so within minutes."""
PRINTED_TAIL_BYTES_MAX: Final = 16 * KIB
"""Of what an attempt printed to one stream, so much of the end is told with heartbeats, and kept when it is lost."""
PRINTED_BYTES_MAX: Final = 32 * MIB
"""The same of all tasks of an owner that run now; of who was not heard of for longest nothing is kept."""
LOST_ATTEMPTS_MAX: Final = 3
"""Attempts of a task that were lost, whose output is kept: the last ones."""
LOST_OUTPUT_JOB_BYTES_MAX: Final = 8 * MIB
"""The same of all tasks of a job; of further ones nothing is kept."""
CHECKPOINT_S: Final = 1.0
"""A worker tells an owner of what its tasks have saved no more often."""
CHECKPOINT_BYTES_MAX: Final = 16 * MIB
"""One cookie."""
CHECKPOINTS_BATCH_MAX: Final = 256
"""Cookies in one message; their bytes are bounded by RESULTS_BATCH_BYTES_MAX."""
CHECKPOINTS_BYTES_MAX: Final = 256 * MIB
"""Cookies that an owner keeps in memory, of all its tasks; each is up to INLINE_BYTES_MAX, larger ones are blobs."""
CHECKPOINT_BLOBS_BYTES_MAX: Final = 8 * 1024 * MIB
"""The same on disk."""
CHECKPOINT_COPIES_SHARE: Final = 0.5
"""Copies of cookies of other coordinators' tasks are taken only up to so much of this room: the rest is for our own."""
OUTBOX_DELAY_S: Final = 0.5
"""A worker writes a result to disk when its owner has not acknowledged it within this time and the tick that follows:
tiny tasks that come faster than their owner takes them need not pass through the disk."""
REST_S_MIN: Final = 0.25
REST_S_MAX: Final = 30.0
"""A node that cannot start tasks (disk full, no processes) tries again after this, doubled each time: it neither burns
the attempts of its own jobs nor takes tasks from nodes that could run them."""
OFFER_S_MIN: Final = 0.5
"""Least time between two offers of one owner to one peer."""
OFFERS_MIN: Final = 32
"""Peers that may run its tasks and to which an owner makes offers in any case; to more only while all their slots
together are fewer than OFFER_SLOTS_PER_TASK for each task."""
OFFER_SLOTS_PER_TASK: Final = 2
OFFER_AGAIN_S: Final = 30.0
"""In a group of more than k, tasks that nobody took are offered to further peers, and to the same ones after this."""
SEEK_AGAIN_S: Final = 60.0
"""Pause between two searches for nodes for one job, while those that are known do not suffice."""
SEEK_CHANNELS_MAX: Final = 3 * CHANNELS_MAX // 4
"""With so many channels an owner looks for no more nodes of any kind: what is left is for those that come."""
CLAIM_BYTES_MAX: Final = 640 * KIB
"""One encoded outcome; keeps a results message inside a frame."""
THIEVES_MAX: Final = 16384
"""Thieves that an owner remembers; the one not seen for longest is forgotten."""
JOB_NODES_MAX: Final = THIEVES_MAX
"""Nodes of which an owner knows, for one job, how many tasks they hold and have done, how fast they are, and whether
they fail or refuse: as many as it remembers at all, for one member can have any number of keys.  The one that came
first is forgotten, of those that hold no task: it is to this job as if it had never had a task of it."""
UNACKED_RESULTS_BYTES_MAX: Final = 1024 * MIB
"""Results a worker keeps for an owner that is away; beyond it no new tasks are taken."""
UNSENT_BLOBS_CACHE_SHARE: Final = 0.5
"""Files of results that a worker keeps for other owners: at most so much of its blob store's cap (`store.cache`), for
rest is for inputs and what is kept for others.  No tasks are taken while half of it is used, so that what runs by then
finds room; what finds none is not taken, and a task whose output alone is larger fails."""
INPUTS_CACHE_SHARE: Final = 0.3
"""Inputs of tasks that a worker fetches, holds or runs: at most so much of that cap; further tasks wait.  One whose
inputs alone are larger, and fit the whole, has no others beside it."""
STORY_EVENTS_MAX: Final = 64
"""Events remembered per task for `show`."""

# --- custody --------------------------------------------------------------------------------------
CUSTODIANS: Final = 2
"""Nodes that keep a job beside its owner, where there are so many."""
CUSTODIANS_MAX: Final = 8
"""Custodians that an envelope may name."""
CUSTODY_AFTER_S: Final = 2.0
"""A job is kept elsewhere when it lasts longer than this: a short one costs nothing."""
CUSTODY_BEAT_S: Final = 10.0
"""A coordinator is heard of at least so often by those that keep its job."""
CUSTODY_LEAVING_S: Final = 5.0
"""After a coordinator has said that it leaves: how long it may take to come back before the first custodian acts."""
CUSTODY_GRACE_S: Final = 10.0
"""An owner that comes back grants nothing of a job for so long at most, while it hears what its custodians have."""
CUSTODY_JOBS_MAX: Final = 1024
"""Jobs of others that one node keeps; further ones are not taken, and counted."""
CUSTODY_BYTES_MAX: Final = 4096 * MIB
"""Facts, results, cookies and files that one node keeps for others; what is more is not taken, and counted."""
CUSTODY_CACHE_SHARE: Final = 0.2
"""The same as a share of the blob store's cap: the smaller of the two counts."""
READERS_MAX: Final = 64
"""Nodes that read a job here by a ticket; the one that came first has to show it again."""
CUSTODY_KEEP_S: Final = 30 * 86400.0
"""A job of others is forgotten when nobody has told anything of it for so long."""
SYNC_BYTES_MAX: Final = 256 * KIB
"""An answer about a job is closed when it is larger than this; with one more item it stays inside a frame."""
SYNC_ITEMS_MAX: Final = 2000
SYNC_SAVED_BYTES_MAX: Final = 64 * KIB
"""Of an answer, cookies of tasks have at least so much, beside what else is told: neither holds the other up."""
SYNC_PAUSE_S: Final = 1.0
"""Pause between two questions of one keeper about one job: what happens meanwhile travels together."""
SYNC_WAITING_MAX: Final = 1024
"""Questions that wait here for news; further ones are answered at once."""
TICKET_TTL_S: Final = 7 * 86400.0
"""How long a ticket for a job can be used."""

# --- store ----------------------------------------------------------------------------------------
STORE_COMMITS_WAITING_MAX: Final = 65_536
"""Commits that wait for the disk; further ones fail at once (code store-busy): the disk is minutes behind."""
STORE_READS_WAITING_MAX: Final = 16_384
"""Reads that wait for the disk; further ones fail at once (code store-busy)."""
STORE_GROUP_MAX: Final = 4096
"""Commits that share one transaction: bounds how long the first of them waits for the last."""
STORE_GROUP_BYTES_MAX: Final = 16 * MIB
"""Values in one shared transaction: bounds the growth of the write-ahead log; one larger commit goes alone."""
STORE_DELETE_ROWS_MAX: Final = 5000
"""Rows that `delete_prefix` removes in one transaction, about 20 ms, so that commits come in between."""
STORE_CHECK_BYTES_MAX: Final = 64 * MIB
"""A store up to this size is checked at every start (about 0.1 s); a larger one only after an unclean end."""

# --- blobs ----------------------------------------------------------------------------------------
BLOB_CHUNK_BYTES: Final = 512 * KIB
"""A blob is hashed and sent in chunks of this size; a chunk and its header fit a frame."""
BLOB_CHUNKS_MAX: Final = 1_048_576
"""Chunks of one blob: 512 GiB."""
BLOB_MANIFEST_PAGE: Final = 16_384
"""Chunk hashes in one manifest reply: 512 KiB."""
BLOB_FETCHES_MAX: Final = 4
"""Transfers of blobs of several chunks at once from one peer."""
BLOB_SMALL_BYTES: Final = 64 * KIB
"""Blobs up to this size are written in groups that share the wait for the disk."""
BLOB_SMALL_WAITING_MAX: Final = 1024
"""Small blobs (64 MiB in all) that wait for the disk; further ones fail at once (code store-busy)."""
BLOB_THREADS: Final = 4
"""Threads that read and write blobs."""
BLOB_VERIFIED_MAX: Final = 65_536
"""Blobs whose files are known to fit their digests (about 250 bytes each); others are hashed again when used."""
BLOB_MANIFESTS_MAX: Final = 8
"""Manifests kept in memory (at most 32 MiB each, 64 KiB for a blob of 1 GiB) while blobs are read in pieces."""
BLOB_DAMAGED_BYTES_MAX: Final = 64 * MIB
"""Content of damaged blobs kept for whoever wants to look; beyond it only their names."""
BLOB_RECENT_S: Final = 60.0
"""A blob used within this time is not evicted: it may be about to be pinned."""
BLOB_BUDGET_CHUNKS: Final = 16
"""Chunks (8 MiB) asked for and not yet on disk, over all transfers: bounds the memory of fetching."""
BLOB_WINDOW_CHUNKS: Final = 8
"""Chunks under way from one peer: 4 MiB, enough for 40 ms round trips at 100 MB/s and half of what a channel may
hold unsent."""
BLOB_TRANSFERS_MAX: Final = 16
"""Blobs of several chunks being fetched at once, over all peers."""
BLOB_PARTIALS_MAX: Final = 16
"""Broken transfers whose verified chunks are kept for the next try; the oldest is dropped."""
BLOB_REQUEST_S: Final = 120.0
"""Wait for one chunk or manifest page: a full window at 35 kB/s."""
BLOB_CONTROL_WINDOW_CHUNKS: Final = 2
"""Chunks under way from a peer that can be reached by its control channel only: bounds what a steal waits for."""
BLOB_SOURCES_MAX: Final = 32
"""Sources of one transfer; further ones are not tried."""
DISK_RESERVE_BYTES: Final = 16 * MIB
"""Free space below which no further blob is kept, so that the journal (STORE_GROUP_BYTES_MAX) still finds room: a task
that fills the disk fails by itself, and alone."""
BLOB_FETCH_LANES: Final = 16
"""Blobs of one `fetch_all` under way at once: small ones are bound by the round trip and by waiting for the disk."""
BLOB_SERVES_MAX: Final = 2
"""Chunks being read for one peer at once; together with the drained channel this bounds the memory of serving."""
BLOB_SERVES_WAITING_MAX: Final = 64
"""Requests of one peer that wait for their turn; further ones are refused (code busy)."""
CACHE_BYTES_DEFAULT: Final = 20 * 1024 * MIB

# --- execution ------------------------------------------------------------------------------------
RUNNER_MESSAGE_BYTES_MAX: Final = 64 * MIB
"""One message between the node and its worker process."""
OUTPUT_FILES_MAX: Final = 10_000
RUN_BATCH_S: Final = 0.05
"""Tiny tasks are handed to a worker process in batches of about this length."""
RUN_BATCH_MAX: Final = 256
RECALL_S: Final = 4 * RUN_BATCH_S
"""Of a batch that takes so much longer than it should, what has not started is taken back from the worker process."""
KILL_GRACE_S: Final = 1.5
"""From SIGTERM to SIGKILL of a task's process group: time to save its state, and short enough that a machine whose
owner says so is free within 2 s."""
TAIL_S: Final = 3.0
"""Wait for what a running task has printed so far."""
RUNNER_SAVED_PAUSE_S: Final = 0.05
RUNNER_SAVED_BYTES_PER_S: Final = 32 * MIB
"""After a task has saved its state nothing is read from its process for as long as these say: what saves all the time
waits itself."""
RUNNER_JOBS_MAX: Final = 16
"""Jobs whose loaded function and settings a worker process keeps; the least recently used is forgotten."""
RUNNER_SEND_BYTES: Final = 4 * MIB
"""A batch goes to a worker process in messages of about this size, well below RUNNER_MESSAGE_BYTES_MAX."""
RUNNER_READ_PAUSE_S: Final = 0.002
"""Longest time that the results of tiny tasks wait in the socket, so that one wake-up reads many."""
RUNNER_WATCH_SLACK_S: Final = 10.0
"""A worker process that has not stopped its command this long after its time limit and grace is killed."""
ERROR_TEXT_BYTES_MAX: Final = 32 * KIB
"""Traceback or reason in an outcome; the middle of a longer one is cut out."""
MODULES_BY_VALUE_BYTES_MAX: Final = 1 * MIB
"""Source of the user's own modules that travels inside the pickled function; more travels as a zip."""

# --- sandboxes ------------------------------------------------------------------------------------
SANDBOX_PROCESSES: Final = 64
"""Processes and threads of a task with one core.  Together with SANDBOX_FILES it bounds what the kernel keeps for it in
sockets and pipes, which no other limit counts: 64 x 256 x 208 KiB."""
SANDBOX_PROCESSES_PER_CORE: Final = 16
"""As many more for each further core that it asks for."""
SANDBOX_FILES: Final = 256
"""Open files of each process."""
SANDBOX_INODES: Final = 20_000
"""Files in the writable place of a sandbox."""
SANDBOX_MEM_BYTES_MIN: Final = 512 * MIB
"""Memory of a task that asks for none: its slot's part of half the machine's, and this at least."""
SANDBOX_DISK_BYTES_MIN: Final = 64 * MIB
"""The same for its writable place, which is memory too: a part of an eighth."""
SANDBOX_OUTPUT_BYTES_MAX: Final = 32 * MIB
"""Standard output or error of a sandboxed task."""
SANDBOX_OVERHEAD_BYTES: Final = 96 * MIB
SANDBOX_OVERHEAD_PROCESSES: Final = 16
"""What the kernel's limit of a sandbox has beyond the task's own: its first process, that of a function, bubblewrap."""
SANDBOX_IDLE_S: Final = 5.0
"""A sandbox waits so long for further tasks of its job."""
SANDBOX_TRIAL_S: Final = 20.0
"""Time for the sandbox that is tried at the start; a machine under full load takes long."""

# --- WASI modules ---------------------------------------------------------------------------------
WASM_MEM_BYTES: Final = 512 * MIB
"""Memory of a module whose job asks for none: the same on every node, since a module sees where it ends."""
WASM_MEM_BYTES_MAX: Final = 4096 * MIB
"""As much as 32 bits can point at."""
WASM_ENGINE_BYTES: Final = 512 * MIB
"""Memory of the process that compiles and runs it, besides: code of 10 MB takes most of this."""

# --- environments: Python packages of jobs ------------------------------------------------------------
LOCK_BYTES_MAX: Final = 2 * MIB
"""A job's list of packages: 1,000 packages with 20 files each take 1.6 MiB."""
LOCK_PACKAGES_MAX: Final = 1000
LOCK_HASHES_MAX: Final = 500
"""Files of one package."""
LOCK_PLATFORMS_MAX: Final = 16
PROGRESS_BYTES_MAX: Final = 256
"""How far a task says that it is: two numbers and 200 bytes of text."""
WASM_MODULE_BYTES_MAX: Final = 32 * MIB
"""It goes to the node in one request, as text."""
DIGITS_MAX: Final = 15
"""Significant digits to which numbers of results can be rounded: a double has no more that are sure."""
ENVIRONMENT_BYTES_MAX: Final = 12 * 1024 * MIB
"""One environment with what was fetched for it.  PyTorch with CUDA takes 7 GiB."""
ENVIRONMENT_BUILD_S: Final = 1800.0
"""A build that takes longer is ended: 7 GiB at 5 MB/s."""
ENVIRONMENT_BUILDS_MAX: Final = 2
"""Environments that are built at once; others wait."""
ENVIRONMENT_FAILED_S: Final = 60.0
"""What could not be built is not tried again for so long."""
ENVIRONMENT_FAILURES_MAX: Final = 256
"""Failures that are remembered; the oldest is forgotten."""
ENVIRONMENTS_MAX: Final = 512
"""Environments on disk; the least recently used goes."""
ENVIRONMENT_WORKERS_MAX: Final = 2
"""Warm worker processes of a slot, each for its own environment, beside the one without."""

# --- local API ------------------------------------------------------------------------------------
API_BODY_BYTES_MAX: Final = 64 * MIB
EVENT_BACKLOG_MAX: Final = 10_000
"""Task ends of one followed job that are kept in memory; a follower further behind is served from the store."""
EVENT_BACKLOG_BYTES_MAX: Final = 8 * MIB
"""The same, in bytes: one event holds up to two outputs of INLINE_BYTES_MAX."""
EVENT_PAGE_MAX: Final = 256
"""Task ends in one read of the store for a follower, and in one write to it."""
EVENT_PAGE_BYTES_MAX: Final = 256 * KIB
"""Bytes after which a write to a follower is cut."""
PROGRESS_S_MIN: Final = 0.5
"""Least time between two progress events."""
UNCOMMITTED_S: Final = 0.05
"""How soon results that are decided and not yet in the store are looked for again."""
EVENT_KEEPALIVE_S: Final = 15.0
"""A quiet event stream gets an empty line this often, so that a follower can tell a busy node from a dead one."""
UPLOAD_BATCH_MAX: Final = 500
"""Tasks of an upload that are stored in one transaction."""
UPLOAD_BATCH_BYTES_MAX: Final = 256 * KIB
"""The same, in bytes: large enough to share a disk sync, small enough to push back early."""
UPLOAD_LINE_BYTES_MAX: Final = API_BODY_BYTES_MAX
"""One task in an upload; arguments up to this come inside the line."""
UPLOAD_LINES_AT_ONCE: Final = 64
"""Tasks of one upload whose files are taken in at the same time, so that small ones share a sync of the disk."""
UPLOAD_FILES_MAX: Final = 10_000
"""Files of one task, or shared by a job, with those in its folders."""
UPLOAD_FILES_REMEMBERED: Final = 4096
"""Files of one upload whose content is known already, so that one sent with each task is read once."""
LIST_ITEMS_MAX: Final = 10_000
"""Items of one answer; longer lists are paged."""
LIST_CONTENT_BYTES_MAX: Final = 4 * MIB
"""What tasks in one answer printed and returned; that of further ones is fetched task by task."""
API_CONNECTIONS_MAX: Final = 128
"""Control connections that are listened to at once; further ones wait for one of them to end."""
API_WAITING_MAX: Final = 1024
"""Control connections that wait; further ones are answered 503."""
API_WAIT_S_MAX: Final = 4.0
"""They wait so long, then they are answered 503: less than a command waits for an answer."""
STOP_GRACE_S: Final = 60.0
"""A draining node waits this long for its running tasks, then stops them; they run again elsewhere or later."""
GRACE_S_MAX: Final = 50.0
"""Most that a machine's owner may give running tasks when the node stops; then they are ended, their owners told."""
LOG_BYTES_MAX: Final = 4 * MIB
LOG_FILES_MAX: Final = 4
"""The node's log and its predecessors."""
SINK_PAGE_MAX: Final = 64
"""Results on their way to the files of `--results`; no more are read from the store before these are written."""
RESULT_LINE_BYTES_MAX: Final = 8 * MIB
"""Of a line of results that is read again, so much is held: a task's record, but not always what it printed."""
NUMBER_DIGITS_MAX: Final = 18
"""Of a whole number in a request or a file of results: what fits into 64 bits."""
SINKS_REMEMBERED: Final = 10_000
"""Jobs of which a node says what became of their results, after these are written; the oldest is forgotten, as all
are at the next start."""
SINK_RETRY_S: Final = 5.0
SINK_RETRY_S_MAX: Final = 300.0
"""Time until results are written again to a disk that refuses: doubled from the first to the second."""
SINK_TRIES_S: Final = 86400.0
"""How long that is tried after the end of the job; then others may write there."""
SHOWN_VALUE_BYTES_MAX: Final = 256 * KIB
"""A function's pickled value that one file of results shows as text; of a larger one it says the size."""
SHOWN_VALUE_CHARS_MAX: Final = 1 * MIB
"""Its JSON, of which a pickle may hold the same part many times."""

assert ENVELOPE_BYTES_MAX < FRAME_BYTES_MAX
assert GROUP_LOG_BYTES_MAX + ROSTER_SHARED_MAX * ADMIT_CHAIN_MAX * ADMIT_ENTRY_BYTES_MAX < TRUST_FILE_BYTES_MAX
assert LOG_ENTRY_BYTES_MAX + ADMIT_CHAIN_MAX * ADMIT_ENTRY_BYTES_MAX < FRAME_BYTES_MAX
assert LOG_FOUNDER_ENTRIES < LOG_ENTRIES_MAX
assert VERIFY_UNASKED_BYTES_MAX < VERIFY_HELD_BYTES_MAX, "who was not asked keeps nobody from working"
assert 61 * RESULTS_BATCH_MAX + 512 <= CLAIMS_BYTES_MAX and 2 * CLAIMS_BYTES_MAX + 128 <= PROOF_BYTES_MAX
assert PROOFS_BYTES_MAX + 16 * PROOFS_MAX < FRAME_BYTES_MAX
assert GRANT_BYTES_MAX + TASK_PAYLOAD_BYTES_MAX <= FRAME_BYTES_MAX
assert (
    GRANT_BYTES_MAX + GRANT_ENVELOPE_BYTES_MAX + MANIFEST_BYTES_MAX + 32 * GRANT_TASKS_MAX + 4 * KIB <= FRAME_BYTES_MAX
)
assert BLOB_CHUNK_BYTES < FRAME_BYTES_MAX and BLOB_MANIFEST_PAGE * 32 < FRAME_BYTES_MAX
assert BLOB_WINDOW_CHUNKS * (BLOB_CHUNK_BYTES + KIB) < CHANNEL_WRITE_BYTES_MAX, "a full window is never cut off"
assert INLINE_BYTES_MAX <= TASK_PAYLOAD_BYTES_MAX
assert UNSENT_BLOBS_CACHE_SHARE + INPUTS_CACHE_SHARE + CUSTODY_CACHE_SHARE <= 1.0, "others fill no more than the cap"
assert TASK_PAYLOAD_BYTES_MAX * 2 + RUNNER_SEND_BYTES < RUNNER_MESSAGE_BYTES_MAX
assert 3 * INLINE_BYTES_MAX + ERROR_TEXT_BYTES_MAX < RUNNER_MESSAGE_BYTES_MAX
assert DHT_PING_S * (DHT_FAILURES_MAX + 1) + DHT_FAILURES_MAX * DHT_REQUEST_S < 60, "gone within a minute"
assert SEED_PATIENCE_S > DHT_REQUEST_S
assert MEETINGS_MET_MAX >= MEETINGS_BURST + JOIN_LIFE_S * MEETINGS_PER_S, "no channel has two exchanges"
assert SEED_ADDRESSES_MAX <= DHT_JOIN_ADDRESSES_MAX // 4, "a lying seed leaves room for the addresses that are known"
assert RECORD_BYTES_MAX <= DHT_PUT_PARTS_MAX * DHT_CHUNK_BYTES
assert DHT_CHUNK_BYTES + 188 <= DHT_BODY_BYTES_MAX
