"""Heard changes: an answer is said to hold for as long as the catalog would have given it again, and no longer."""

from hypothesis import given
from hypothesis import strategies as st

from hotslot.ids import AdapterName, Digest, TagName
from hotslot.references import Reference
from worker_service.adapters.catalog_change import CatalogChange, ChangeKind, scopes_of
from worker_service.adapters.heard_changes import HeardChanges

NAMES = (AdapterName("one"), AdapterName("two"))
TAGS = (TagName("latest"), TagName("train"))
DIGESTS = tuple(Digest(f"sha256:{number}") for number in range(3))
REFERENCES = tuple(Reference(name, tag, None) for name in NAMES for tag in TAGS) + tuple(
    Reference(name, None, digest) for name in NAMES for digest in DIGESTS
)
FIRST = 10


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[CatalogChange], list[dict[Reference, object]]]:
    """Changes of a catalog from revision FIRST + 1 on, and what each reference stood for at FIRST and after each."""
    state: dict[Reference, object] = {reference: reference.digest or DIGESTS[0] for reference in REFERENCES}
    changes, states = [], [dict(state)]
    for number in range(draw(st.integers(0, 12))):
        kind, name = draw(st.sampled_from(list(ChangeKind))), draw(st.sampled_from(NAMES))
        tag, digest = draw(st.sampled_from(TAGS)), draw(st.sampled_from(DIGESTS))
        change = CatalogChange(FIRST + 1 + number, kind, name, tag, digest)
        match kind:
            case ChangeKind.TAG_MOVED:
                state[Reference(name, tag, None)] = digest
            case ChangeKind.TAG_DELETED:
                state[Reference(name, tag, None)] = None
            case ChangeKind.VERSION_DELETED:
                state[Reference(name, None, digest)] = None
            case ChangeKind.ADAPTER_DELETED:
                state.update({reference: None for reference in REFERENCES if reference.name == name})
            case ChangeKind.POLICY_CHANGED:
                # Part of what the store answers, too.
                state.update(
                    {ref: (state[ref], change.revision) for ref in REFERENCES if ref.name == name and state[ref]}
                )
        changes.append(change)
        states.append(dict(state))
    return changes, states


@given(histories(), st.sampled_from(REFERENCES), st.data())
def test_an_answer_holds_at_every_revision_up_to_the_one_that_is_told(
    history: tuple[list[CatalogChange], list[dict[Reference, object]]], reference: Reference, data: st.DataObject
) -> None:
    changes, states = history
    since = data.draw(st.integers(0, len(changes)))
    heard_until = data.draw(st.integers(since, len(changes)))
    read_at = data.draw(st.integers(0, len(changes)))
    heard = HeardChanges(FIRST + since, max_scopes=data.draw(st.sampled_from([1, 2, 100])))
    for change in changes[since:heard_until]:
        heard.add(change)
    until = heard.held_until(reference, FIRST + read_at)
    assert FIRST + read_at <= until <= FIRST + max(read_at, heard_until)
    held = [state[reference] for state in states[read_at : until - FIRST + 1]]
    assert held == [held[0]] * len(held)


@given(histories(), st.sampled_from(REFERENCES))
def test_an_answer_that_nothing_concerns_holds_until_the_last_change(
    history: tuple[list[CatalogChange], list[dict[Reference, object]]], reference: Reference
) -> None:
    changes, _ = history
    heard = HeardChanges(FIRST)
    for change in changes:
        heard.add(change)
    concerning = [change.revision for change in changes if change.scope in scopes_of(reference)]
    if not concerning:
        assert heard.held_until(reference, FIRST) == FIRST + len(changes)
    if len(concerning) == 1:
        assert heard.held_until(reference, FIRST) == concerning[0] - 1
        assert heard.held_until(reference, concerning[0]) == FIRST + len(changes)


def test_an_answer_from_before_the_stream_is_not_vouched_for() -> None:
    heard = HeardChanges(FIRST)
    heard.add(CatalogChange(FIRST + 1, ChangeKind.OTHER, NAMES[0], TAGS[0], DIGESTS[0]))
    assert heard.held_until(REFERENCES[0], FIRST - 1) == FIRST - 1
    assert heard.held_until(REFERENCES[0], FIRST) == FIRST + 1


def test_what_is_remembered_is_bounded_and_what_is_forgotten_is_not_vouched_for() -> None:
    heard = HeardChanges(0, max_scopes=2)
    for revision in range(1, 6):
        heard.add(CatalogChange(revision, ChangeKind.TAG_MOVED, AdapterName(f"a{revision}"), TAGS[0], DIGESTS[0]))
    assert heard.held_until(Reference(AdapterName("other"), TAGS[0], None), 2) == 2
    assert heard.held_until(Reference(AdapterName("other"), TAGS[0], None), 3) == 5
