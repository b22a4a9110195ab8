"""A worker's bounds follow from each other where settings leave them open, and are refused where they contradict."""

from pathlib import Path
from typing import Any

import pytest

from hotslot.errors import InvalidRequestError
from tests.model.tiny_worker import load_tiny
from tests.support.tiny_models import make_model


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({"token_buckets": (1,)}, 1),
        ({"token_buckets": (1, 4)}, 4),
        ({"token_buckets": (1, 8, 64)}, 8),
        ({"token_buckets": (8, 64), "kv_tokens": 64, "block_tokens": 16}, 4),
        ({"token_buckets": (8, 64), "max_sequences": 16}, 16),
    ],
)
def test_rows_that_no_setting_names_are_as_many_as_a_step_and_the_cache_hold(
    changes: dict[str, Any], rows: int, tmp_path: Path
) -> None:
    base = make_model(tmp_path / "base", "llama", is_tied=False)
    assert load_tiny(base, **{"max_sequences": 0, "max_sequence_tokens": 64, **changes}).limits.max_running == rows


def test_more_rows_than_the_largest_bucket_holds_are_refused_by_name(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "llama", is_tied=False)
    with pytest.raises(InvalidRequestError, match="max_sequences = 2"):
        load_tiny(base, token_buckets=(1,), max_sequences=2)
