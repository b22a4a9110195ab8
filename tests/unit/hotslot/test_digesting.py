"""The digest of a stream is that of its bytes, whatever the pieces."""

import hashlib
import random

import pytest

from hotslot.digesting import BLOCK_BYTES, StreamDigest


@pytest.mark.parametrize("piece_bytes", [1_000_003, BLOCK_BYTES, 3 * BLOCK_BYTES + 1])
async def test_pieces_are_digested_in_order(piece_bytes: int) -> None:
    data = random.Random(0).randbytes(9_000_001)
    seen = bytearray()
    digesting = StreamDigest(also=seen.extend)
    for start in range(0, len(data), piece_bytes):
        await digesting.add(memoryview(data)[start : start + piece_bytes])
    assert await digesting.digest() == "sha256:" + hashlib.sha256(data).hexdigest()
    assert seen == data


async def test_nothing_has_the_digest_of_nothing() -> None:
    assert await StreamDigest().digest() == "sha256:" + hashlib.sha256().hexdigest()
