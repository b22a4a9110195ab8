"""Revision of what a client wrote: the largest answer, unless the catalog was created anew."""

from hypothesis import given
from hypothesis import strategies as st

from hotslot.clients.written_revision import WrittenRevision
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=40))
def test_it_is_the_largest_answer_of_one_catalog_in_whatever_order_answers_come(
    schedule: list[tuple[bool, int]],
) -> None:
    """Writes begin and end in any order; the store answers each with the revision at its end."""
    written, revision = WrittenRevision(), 0
    under_way: list[tuple[int, int]] = []
    answered = [0]
    for begins, place in schedule:
        if begins or not under_way:
            revision += 1
            under_way.append((revision, written.value))
        else:
            answer, known_before = under_way.pop(place % len(under_way))
            written.take(answer, known_before)
            answered.append(answer)
        assert written.value == max(answered)


@given(st.integers(2, 1000), st.permutations([1, 2, 3]))
def test_a_catalog_that_was_created_anew_counts_from_its_own_writes(lost: int, answers: list[int]) -> None:
    """Writes that begin together after the old catalog was lost, answered in any order."""
    written = WrittenRevision(lost + 3)
    for answer in answers:
        written.take(answer, lost + 3)
    assert written.value == 3


def test_an_answer_without_a_revision_changes_nothing() -> None:
    written = WrittenRevision(7)
    written.take(0, 7)
    assert written.value == 7


def test_a_request_for_the_base_alone_needs_no_write() -> None:
    written = WrittenRevision(7)
    assert written.needed_by(pb.GenerateRequest(text="x")) == 7
    assert written.needed_by(pb.GenerateRequest(text="x", min_revision=9)) == 9
    assert written.needed_by(pb.GenerateRequest(text="x", base_only=True)) == 0
