"""Patterns of a config match as PEFT's do, and finding one among many takes no longer than it must."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
