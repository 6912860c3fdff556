"""Bytes on the wire: strict canonical CBOR, COSE_Sign1 envelopes, frames.  Pure: no I/O, no clock."""
