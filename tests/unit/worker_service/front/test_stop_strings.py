"""Stop strings in text that comes in pieces."""

from hypothesis import given, settings
from hypothesis import strategies as st

from worker_service.front.stop_strings import StopStrings

LETTERS = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=4)


def reference(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Letter by letter: the first that completes a stop string ends the text; the longest one counts."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


def run(text: str, stops: list[str], cuts: list[int]) -> tuple[str, str | None]:
    matcher = StopStrings(stops)
    out, position = "", 0
    for size in [*cuts, len(text)]:
        piece, position = text[position : position + size], position + size
        emitted, stop = matcher.feed(piece)
        out += emitted
        if stop is not None:
            return out, stop
    return out + matcher.flush(), None


@settings(max_examples=200)
@given(text=LETTERS, stops=STOPS, cuts=st.lists(st.integers(0, 5), max_size=15))
def test_the_outcome_does_not_depend_on_how_the_text_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    assert run(text, stops, cuts) == reference(text, stops)


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    matcher = StopStrings(["\nUser:"])
    assert matcher.feed("hello\n") == ("hello", None)
    assert matcher.feed("Us") == ("", None)
    assert matcher.feed("age") == ("\nUsage", None)
    assert matcher.feed("!\nUser: hi") == ("!", "\nUser:")


def test_without_stop_strings_nothing_is_held_back() -> None:
    assert StopStrings([]).feed("text") == ("text", None)
