"""Patterns of a config match as PEFT's do, and finding one among many takes no longer than it must."""

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store_service.admission import python_matching
from store_service.admission.patterns import MAX_NAME_LAYOUTS, Pattern, PatternError, PatternTable, path_ends

names = st.lists(st.sampled_from(["q", "v", "0", "10", "x_y", ""]), min_size=1, max_size=3).map(".".join)
texts = st.one_of(
    names.filter(bool),
    names.filter(bool).map(lambda name: name.replace("q", ".")),
    st.sampled_from(["q|v", r"^q$", r".*\.q", r"\d+\.q", "(?:q|x_y)", "[qv]"]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(texts, max_size=6, unique=True), st.lists(names, min_size=1, max_size=4))
def test_the_first_pattern_in_pefts_sense_wins(patterns: list[str], paths: list[str]) -> None:
    table = PatternTable([(Pattern(text), text) for text in patterns])
    for path in paths:
        theirs = next((text for text in patterns if re.match(rf"(.*\.)?({text})$", path)), "none")
        assert table.find(path, "none") == theirs


@settings(max_examples=300, deadline=None)
@given(texts, names)
def test_one_pattern_matches_as_pythons_does(text: str, path: str) -> None:
    assert Pattern(text).matches_whole(path) == bool(re.fullmatch(text, path))
    assert Pattern(text).matches_end(path) == bool(re.match(rf"(.*\.)?({text})$", path))


def test_a_dot_in_a_name_stands_for_any_character_but_a_newline() -> None:
    for path, is_match in {"a.b": True, "axb": True, "x.axb": True, "xaxb": False, "a\nb": False}.items():
        assert PatternTable([(Pattern("a.b"), 1)]).find(path, 0) == is_match
        assert Pattern("a.b").matches_end(path) == is_match


def test_the_ends_of_a_path_begin_behind_its_dots() -> None:
    assert list(path_ends("a.b.c")) == ["a.b.c", "b.c", "c"]
    assert list(path_ends("a.")) == ["a.", ""]


def test_names_whose_dots_are_everywhere_are_refused() -> None:
    layouts = [(Pattern(f"{index:011b}".replace("1", ".")), index) for index in range(MAX_NAME_LAYOUTS + 1)]
    PatternTable(layouts[:-1])
    with pytest.raises(PatternError):
        PatternTable(layouts)


def test_names_for_every_module_of_a_large_model_are_looked_up() -> None:
    paths = [f"model.layers.{layer}.mlp.experts.{expert}.up_proj" for layer in range(60) for expert in range(128)]
    table = PatternTable([(Pattern(path), index) for index, path in enumerate(paths)])
    assert [table.find("base." + path, -1) for path in paths] == list(range(len(paths)))


PYTHON_ONLY = [
    r"(?!.*k_proj).*\.(q|v)", r".*(?<=x_y\.)q\Z", r"(q|v)\.\1", r"(?P<a>q|v)\.(?P=a)", r"q++", r"(?>q|v)\.0", r"(?i:Q)",
    r"(?x: q )", r"q{,2}", r"(?(1)q|v)", r"(q)?(?(1)\.v|v)", "(?<!10\\.)v", r"\Aq", r"(?a:\w)",
]  # fmt: skip
"""What RE2 does not take, or reads otherwise."""


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PYTHON_ONLY), names)
def test_what_re2_does_not_take_matches_as_pythons_own(text: str, path: str) -> None:
    try:
        whole, end = re.fullmatch(text, path), re.match(rf"(.*\.)?({text})$", path)
    except re.error:
        return
    pattern = Pattern(text)
    assert pattern.matches_whole(path) == bool(whole)
    assert pattern.matches_end(path) == bool(end)


@pytest.mark.parametrize("text", [r"(?=(a|a)+!)a", r"((a|b|ab)+)+\Z!", r"(?:(a+)+)(?!a)!"])
def test_a_match_that_takes_for_ever_ends_soon_and_harms_no_other(text: str) -> None:
    begun_s = time.monotonic()
    with pytest.raises(PatternError, match="write it without nested repeats"):
        Pattern(text).matches_whole("a" * 60)
    assert time.monotonic() - begun_s < python_matching.MATCH_WALL_S
    assert Pattern(r"(?=a)a+").matches_whole("a" * 60)


def test_slow_matches_of_one_expression_share_a_bounded_time() -> None:
    pattern = Pattern(r"(?=(a|a)+!)a")
    paths = ["a" * length + letter for length in range(10, 40) for letter in "bcdefghijklmnop"]
    with pytest.raises(PatternError):
        [pattern.matches_whole(path) for path in paths]


def test_the_helper_is_a_process_that_is_used_again() -> None:
    Pattern(r"(?=a)a").matches_whole("a")
    helper = python_matching._helper(os.getpid())
    first = helper._process
    assert first is not None
    Pattern(r"(?=b)b").matches_whole("b")
    assert helper._process is first
    first.kill()
    first.wait()
    assert Pattern(r"(?=b)b").matches_whole("b")


def test_threads_share_the_helper() -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda n: Pattern(rf"(?=a)a{{{n}}}").matches_whole("a" * 5), range(1, 40)))
    assert found == [n == 5 for n in range(1, 40)]
