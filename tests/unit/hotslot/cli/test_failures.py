"""Errors as lines for people."""

import pytest

from hotslot.cli.failures import error_lines
from hotslot.errors import QueueFullError, SourceUnavailableError


@pytest.mark.parametrize("advice", ["", "; try again", "; try again later", "; try again shortly", ", try again soon"])
@pytest.mark.parametrize("retry_after_s", [None, 0.5, 5])
def test_the_advice_to_try_again_stands_once(advice: str, retry_after_s: float | None) -> None:
    errors = (
        SourceUnavailableError(f"the hub does not answer{advice}", retry_after_s=retry_after_s),
        QueueFullError(f"64 calls wait{advice}", subject="queue", retry_after_s=retry_after_s),
    )
    for error in errors:
        (line,) = error_lines(error)
        assert line.count("try again") == (1 if advice or retry_after_s else 0)
        assert line.endswith(f"; try again in {retry_after_s:g} s" if retry_after_s else advice)
