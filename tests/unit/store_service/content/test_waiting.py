"""Time that things wait to be removed: it counts only while they were seen without a use."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from store_service.catalog.records import CatalogState
from store_service.content.waiting import FileNote, Ledger, Waiting, last_num_changes

STATE = CatalogState("catalog", 5)

passes = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("abcd"), st.sampled_from("xy")),
        st.floats(min_value=0, max_value=100),
        st.booleans(),
    ),
    max_size=12,
)


class MemoryNote:
    def __init__(self) -> None:
        self.data: bytes | None = None

    def read(self) -> bytes | None:
        return self.data

    def write(self, data: bytes) -> None:
        self.data = data


@given(passes)
def test_what_waits_has_been_seen_so_without_a_gap_for_as_long_over_all_lives(
    observed: list[tuple[dict[str, str], float, bool]],
) -> None:
    note = MemoryNote()
    ledger = Ledger(note, STATE)
    since: dict[str, tuple[str, float]] = {}
    now_s = 0.0
    for seen, elapsed_s, restarts in observed:
        if restarts:
            ledger, elapsed_s = Ledger(note, STATE), 0.0
        now_s += elapsed_s
        ledger.blobs.observe(seen, elapsed_s)
        ledger.save(5)
        since = {
            name: since[name] if name in since and since[name][0] == mark else (mark, now_s)
            for name, mark in seen.items()
        }
        for grace_s in (0.0, 50.0, 200.0):
            expected = {name for name, (_, first_s) in since.items() if now_s - first_s >= grace_s + 1e-6}
            latest = {name for name, (_, first_s) in since.items() if now_s - first_s >= grace_s - 1e-6}
            assert expected <= set(ledger.blobs.due(grace_s)) <= latest


def noted(folder: Path) -> FileNote:
    note = FileNote(folder / "waiting.json")
    ledger = Ledger(note, STATE)
    ledger.blobs.observe({"blob": ""}, 0)
    ledger.blobs.observe({"blob": ""}, 1000)
    ledger.uploads.observe({"upload": "1"}, 0)
    ledger.uploads.observe({"upload": "1"}, 10)
    ledger.save(STATE.num_changes)
    return note


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    note = noted(tmp_path)
    again = Ledger(note, CatalogState("catalog", 9))
    assert (again.blobs.due(1000), again.blobs.due(1001)) == (["blob"], [])
    assert (again.uploads.due(10), again.uploads.due(11)) == (["upload"], [])
    assert last_num_changes(note, "catalog") == 5


def test_the_note_of_another_catalog_or_of_a_later_state_shortens_nothing(tmp_path: Path) -> None:
    note = noted(tmp_path)
    for state in (CatalogState("other", 9), CatalogState("catalog", 4)):
        assert Ledger(note, state).blobs.all() == {}


def test_no_bit_that_flips_in_the_note_makes_anything_older(tmp_path: Path) -> None:
    note = noted(tmp_path)
    whole = note.read()
    assert whole is not None
    for bit in range(0, len(whole) * 8, 3):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        note.write(bytes(data))
        assert Ledger(note, STATE).blobs.due(1001) == []
    note.write(whole[:-1])
    assert Ledger(note, STATE).blobs.all() == {}


def test_another_mark_begins_anew() -> None:
    waiting = Waiting({})
    waiting.observe({"a": "1"}, 0)
    waiting.observe({"a": "1"}, 5)
    waiting.observe({"a": "2"}, 5)
    assert waiting.all() == {"a": ("2", 0.0)}
