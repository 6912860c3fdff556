"""Receipts of CPU time.  If these fail, somebody can make up what he gave, or take back what he owes."""

from __future__ import annotations

from typing import Any

import pytest

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.identity.keys import create_identity, delegate
from p2pcompute.scheduler.receipts import (
    RECEIPT_CONTENT_TYPE,
    RECEIPT_S,
    RECEIPTS_MAX,
    Receipts,
    open_receipt,
    seal_receipt,
)

CRYPTO = RealCrypto()
ADA, BOB, EVE = (create_identity(CRYPTO) for _ in range(3))


def receipt(issuer: Any = ADA, worker: bytes = BOB.installation, cpu_ms: int = 1000, tasks: int = 3) -> bytes:
    return seal_receipt(issuer, worker, cpu_ms, tasks, 1)


def test_a_receipt_is_checked_by_anybody() -> None:
    found = open_receipt(CRYPTO, receipt())
    assert (found.issuer, found.worker, found.cpu_ms, found.tasks) == (ADA.installation, BOB.installation, 1000, 3)


def test_a_delegate_signs_for_its_installation() -> None:
    session = delegate(ADA, CRYPTO, expires_wall=100.0, roles=("submit",))
    assert open_receipt(CRYPTO, receipt(session)).issuer == ADA.installation
    late = seal_receipt(session, BOB.installation, 1, 1, 10**9)
    with pytest.raises(RemoteProtocolError):
        open_receipt(CRYPTO, late)


@pytest.mark.parametrize(
    "raw",
    [
        receipt()[:-1] + bytes([receipt()[-1] ^ 1]),
        receipt(EVE),
        receipt(worker=EVE.installation),
        receipt(cpu_ms=999),
        receipt(tasks=2),
        b"",
        b"\xa0",
        ADA.sign_envelope(RECEIPT_CONTENT_TYPE, {"worker": BOB.installation}),
        ADA.sign_envelope("p2pc/job", {"worker": BOB.installation}),
        ADA.sign_envelope(
            RECEIPT_CONTENT_TYPE,
            {"worker": BOB.installation, "cpu_ms": -1, "tasks": True, "at": 1, "delegation": None},
        ),
    ],
)
def test_a_forged_receipt_is_refused_and_counted(raw: bytes) -> None:
    books = Receipts(BOB.installation)
    books.take(CRYPTO, receipt(), ADA.installation)
    with pytest.raises(RemoteProtocolError):
        books.take(CRYPTO, raw, ADA.installation)
    assert books.refused_count == 1 and books.given_s == 1.0


def test_the_newest_receipt_says_all() -> None:
    books = Receipts(BOB.installation)
    books.take(CRYPTO, receipt(), ADA.installation)
    books.take(CRYPTO, receipt(cpu_ms=2500, tasks=5), ADA.installation)
    books.take(CRYPTO, receipt(EVE, cpu_ms=500), EVE.installation)
    assert books.given_s == 3.0 and len(books.given) == 2


def test_receipts_go_out_at_intervals_and_never_say_less() -> None:
    books = Receipts(ADA.installation)
    books.worked(BOB.installation, 1.5)
    books.worked(ADA.installation, 9.0)
    assert list(books.due(0.0)) == [(BOB.installation, 1500, 1)]
    assert not list(books.due(2 * RECEIPT_S)), "there is nothing new"
    books.worked(BOB.installation, 0.5)
    assert not list(books.due(RECEIPT_S - 1))
    assert list(books.due(RECEIPT_S)) == [(BOB.installation, 2000, 2)]
    again = Receipts(ADA.installation)
    again.restore_taken(BOB.installation, 2000, 2)
    assert not again.is_due and again.taken_s == 2.0
    again.worked(BOB.installation, 1.0)
    assert list(again.due(0.0)) == [(BOB.installation, 3000, 3)]


def test_the_books_are_bounded() -> None:
    books = Receipts(ADA.installation)
    for number in range(RECEIPTS_MAX + 10):
        books.worked(number.to_bytes(32), 1.0)
    assert books.taken_s == RECEIPTS_MAX
