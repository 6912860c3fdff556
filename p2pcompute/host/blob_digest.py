"""The digest of a blob: what every implementation of `BlobStore` and every transfer agrees on.

Pure.  A blob of one chunk (≤ BLOB_CHUNK_BYTES, the empty one included) is named by the BLAKE3 of its content; a
longer one by BLAKE3(b"p2pc blob tree" ‖ size as 8 bytes big-endian ‖ the BLAKE3 of each chunk).  The *manifest*
is the concatenation of the chunk hashes; for a blob of one chunk it is the digest itself.

Source: BLAKE3 (O'Connor, Aumasson, Neves, Wilcox-O'Hearn, 2020), section 2.
"""

from __future__ import annotations

from typing import Final

from blake3 import blake3

from p2pcompute.host.interfaces import BlobRef
from p2pcompute.limits import BLOB_CHUNK_BYTES

HASH_BYTES: Final = 32
_TREE: Final = b"p2pc blob tree"


def chunk_count(size: int) -> int:
    """Return how many chunks a blob of `size` bytes has; at least 1."""
    return max(1, -(-size // BLOB_CHUNK_BYTES))


def chunk_size(size: int, index: int) -> int:
    """Return the bytes of chunk `index` (from 0, below `chunk_count`) of a blob of `size` bytes."""
    return min(BLOB_CHUNK_BYTES, size - index * BLOB_CHUNK_BYTES)


def hash_chunk(data: bytes | memoryview) -> bytes:
    """Return the BLAKE3 of one chunk: 32 bytes."""
    return blake3(data).digest()


def digest_of(size: int, manifest: bytes) -> bytes:
    """Return the digest of a blob of `size` bytes whose chunk hashes are `manifest`."""
    if size <= BLOB_CHUNK_BYTES:
        return manifest
    return blake3(_TREE + size.to_bytes(8, "big") + manifest).digest()


def is_manifest(ref: BlobRef, manifest: bytes) -> bool:
    """True when `manifest` has the chunk hashes that `ref` names."""
    return len(manifest) == HASH_BYTES * chunk_count(ref.size) and digest_of(ref.size, manifest) == ref.digest


def ref_of(data: bytes) -> BlobRef:
    """Return the reference of a blob that is in memory."""
    hasher = BlobHasher()
    hasher.update(data)
    return hasher.finish()


class BlobHasher:
    """Hashes a blob that comes in pieces.  Holds 32 bytes per chunk and never the content."""

    def __init__(self) -> None:
        self.size = 0
        self._hashes = bytearray()
        self._chunk = blake3()
        self._room = BLOB_CHUNK_BYTES
        """Bytes that still fit the current chunk."""

    def update(self, data: bytes) -> None:
        """Append a piece of any size."""
        self.size += len(data)
        view = memoryview(data)
        while view:
            if not self._room:
                self._next_chunk()
            piece = view[: self._room]
            self._chunk.update(piece)
            self._room -= len(piece)
            view = view[len(piece) :]

    def _next_chunk(self) -> None:
        self._hashes += self._chunk.digest()
        self._chunk = blake3()
        self._room = BLOB_CHUNK_BYTES

    @property
    def manifest(self) -> bytes:
        """The chunk hashes of what came so far, 32 bytes each."""
        return bytes(self._hashes) + self._chunk.digest()

    def finish(self) -> BlobRef:
        """Return the reference of what came so far."""
        return BlobRef(digest_of(self.size, self.manifest), self.size)
