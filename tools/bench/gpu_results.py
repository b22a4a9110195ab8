"""Committed results of a GPU report."""

import json
from pathlib import Path
from typing import Any

COMMITTED = Path(__file__).with_name("gpu.json")


def committed_gpu() -> dict[str, Any] | None:
    """Results of the last report that was committed; None where there is none."""
    if not COMMITTED.exists():
        return None
    found: dict[str, Any] = json.loads(COMMITTED.read_text(encoding="utf-8"))
    return found
