"""Which blobs are evicted, for any state of the disk."""

from hypothesis import given
from hypothesis import strategies as st

from hotslot.ids import Digest, TenantId
from store_service.content.eviction import LocalBlob, choose_victims


@st.composite
def disks(draw: st.DrawFn) -> list[LocalBlob]:
    return [
        LocalBlob(
            (TenantId(draw(st.sampled_from(["a", "b"]))), Digest(f"sha256:{index:064x}")),
            size_bytes=draw(st.integers(0, 100)),
            last_used_s=draw(st.integers(0, 10)),
            is_pinned=draw(st.booleans()),
            is_leased=draw(st.booleans()),
            is_recoverable=draw(st.booleans()),
        )
        for index in range(draw(st.integers(0, 12)))
    ]


@given(disks(), st.integers(-100, 800))
def test_no_blob_that_somebody_needs_or_that_would_be_lost_is_a_victim(blobs: list[LocalBlob], room: int) -> None:
    for victim in choose_victims(blobs, room).victims:
        assert victim in blobs
        assert victim.is_recoverable
        assert not victim.is_pinned
        assert not victim.is_leased


@given(disks(), st.integers(-100, 800))
def test_every_victim_was_used_before_every_evictable_blob_that_stays(blobs: list[LocalBlob], room: int) -> None:
    victims = choose_victims(blobs, room).victims
    stay = [blob for blob in blobs if blob.is_evictable and blob not in victims]
    assert list(victims) == sorted(victims, key=lambda blob: blob.last_used_s)
    assert all(victim.last_used_s <= blob.last_used_s for victim in victims for blob in stay)


@given(disks(), st.integers(-100, 800))
def test_in_the_end_the_rest_fits_or_nothing_evictable_is_left(blobs: list[LocalBlob], room: int) -> None:
    eviction = choose_victims(blobs, room)
    rest = [blob for blob in blobs if blob not in eviction.victims]
    assert eviction.fits == (sum(blob.size_bytes for blob in rest) <= room)
    assert eviction.fits or not any(blob.is_evictable for blob in rest)


@given(disks(), st.integers(-100, 800))
def test_no_more_go_than_must(blobs: list[LocalBlob], room: int) -> None:
    eviction = choose_victims(blobs, room)
    if eviction.victims:
        kept_bytes = sum(blob.size_bytes for blob in blobs if blob not in eviction.victims[:-1])
        assert kept_bytes > room
