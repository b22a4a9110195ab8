"""Followed files: a change is seen once, a file that cannot be used leaves the earlier content in force."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.errors import FieldViolation, InvalidRequestError
from shared.followed_file import FollowedFile


def read_number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError) as exc:
        raise InvalidRequestError([FieldViolation(str(path), str(exc))]) from exc


@given(st.lists(st.integers(0, 10**6).map(str) | st.sampled_from(["", "x", "1 2", None]), max_size=12))
def test_the_last_content_that_can_be_used_is_in_force(
    tmp_path_factory: pytest.TempPathFactory, contents: list[str | None]
) -> None:
    path = tmp_path_factory.mktemp("followed") / "number"
    path.write_text("7")
    followed = FollowedFile(path, read_number, 0)
    followed._stamps._clock = itertools.count(10**9, 10).__next__
    expected, length = 7, 1
    for content in contents:
        if content is None:
            path.unlink(missing_ok=True)
        else:
            length += 1  # another size, since a clock may be too coarse to tell two writings apart
            path.write_text(content + " " * length)
        changed = followed.refresh()
        if content is not None and content.isdigit():
            expected = int(content)
            assert changed
        else:
            assert not changed
        assert followed.content == expected
        assert not followed.refresh()


def test_a_first_file_that_cannot_be_used_is_refused_and_none_is_never_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError):
        FollowedFile(tmp_path / "absent", read_number, 0)
    nothing = FollowedFile(None, read_number, 5)
    assert not nothing.refresh()
    assert nothing.content == 5
