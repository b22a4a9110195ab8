"""The trainer's callback before its first publication, and the figures that it takes from a log."""

from collections.abc import Iterator
from typing import Any

import pytest

from hotslot import BlockingHotslotClient
from hotslot.errors import HotslotError
from hotslot.integrations import transformers
from hotslot.integrations.transformers import PublishCallback


@pytest.fixture
def hotslot() -> Iterator[BlockingHotslotClient]:
    with BlockingHotslotClient("127.0.0.1:1", None) as client:
        yield client


@pytest.mark.parametrize(
    ("reference", "more"),
    [
        ("A b", {}),
        ("bot", {"every_steps": -1}),
        ("bot", {"every_steps": 1.5}),
        ("bot", {"every_steps": True}),
        ("bot", {"keep": "5"}),
        ("bot", {"tags_at_end": "final"}),
        ("bot", {"annotations": {"run": None}}),
        ("bot", {"base_model": None}),
    ],
)
def test_what_no_publication_can_have_is_refused_before_the_training_begins(
    hotslot: BlockingHotslotClient, reference: str, more: dict[str, Any]
) -> None:
    with pytest.raises(HotslotError):
        PublishCallback(hotslot, reference, **more)


def test_the_last_version_has_the_newest_figures_though_a_summary_is_logged_after_them() -> None:
    log: list[dict[str, object]] = [
        {"loss": 2.0, "learning_rate": 0.1, "step": 1},
        {"loss": 1.5, "learning_rate": 0.05, "step": 2},
        {"eval_loss": 1.75, "step": 2},
        {"train_runtime": 3.0, "train_loss": 1.8, "step": 2},
    ]
    assert transformers.newest_figures(log) == {"loss": 1.5, "learning_rate": 0.05, "eval_loss": 1.75}
    assert transformers.newest_figures([]) == {}
