"""Which versions retention removes: never one with a tag, one of the newest, or one that was used a moment ago."""

from hypothesis import given
from hypothesis import strategies as st

from hotslot.ids import digest_of
from store_service.catalog.retention import NO_RETENTION, RetentionPolicy, StoredVersion, choose_removed

NOW_S = 10_000.0
times = st.floats(0, NOW_S)
versions = st.builds(
    lambda create_s, use_s, is_tagged: (create_s, use_s, is_tagged), times, st.just(0.0) | times, st.booleans()
)
policies = st.builds(RetentionPolicy, st.integers(0, 8), st.none() | st.floats(0, NOW_S))


def stored(position: int, create_s: float, use_s: float, is_tagged: bool) -> StoredVersion:
    digest = digest_of(b"%d" % position)
    return StoredVersion(digest, digest, 1, create_s, use_s, is_tagged)


@given(st.lists(versions, max_size=12), policies, st.floats(0, NOW_S), st.just(0.0) | times)
def test_what_goes_is_old_untagged_and_beyond_the_newest_and_all_of_that_goes(
    found: list[tuple[float, float, bool]], policy: RetentionPolicy, grace_s: float, heard_since_s: float
) -> None:
    newest_first = [stored(position, *version) for position, version in enumerate(found)]
    pruning = choose_removed(newest_first, policy, now_s=NOW_S, grace_s=grace_s, heard_since_s=heard_since_s)
    removed = set(pruning.removed)
    for position, version in enumerate(newest_first):
        idle_s = NOW_S - max(version.create_time_s, version.use_time_s)
        may_go = policy.removes and position >= policy.keep_versions and not version.is_tagged
        is_heard = NOW_S - heard_since_s >= grace_s
        is_old = is_heard and idle_s >= grace_s and idle_s >= (policy.untagged_ttl_s or 0.0)
        assert (version in removed) == (may_go and is_old)
    assert len(removed) + pruning.num_waiting + pruning.num_kept == len(newest_first)


def test_without_a_policy_everything_stays() -> None:
    versions = [stored(position, 0.0, 0.0, is_tagged=False) for position in range(5)]
    assert choose_removed(versions, NO_RETENTION, now_s=NOW_S, grace_s=0.0).num_kept == 5


def test_the_grace_alone_is_told_apart_from_what_the_policy_keeps() -> None:
    versions = [stored(position, NOW_S - 1.0, 0.0, is_tagged=False) for position in range(5)]
    pruning = choose_removed(versions, RetentionPolicy(2), now_s=NOW_S, grace_s=60.0)
    assert (pruning.removed, pruning.num_waiting, pruning.num_kept) == ((), 3, 2)
