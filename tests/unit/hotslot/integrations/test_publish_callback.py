"""The trainer's callback before its first publication, and the figures that it takes from a log."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

from hotslot import BlockingHotslotClient
from hotslot.errors import HotslotError, StoreUnavailableError
from hotslot.integrations import transformers
from hotslot.integrations.transformers import OnError, PublicationWarning, PublishCallback


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
        ("bot", {"on_error": "ignore"}),
    ],
)
def test_what_no_publication_can_have_is_refused_before_the_training_begins(
    hotslot: BlockingHotslotClient, reference: str, more: dict[str, Any]
) -> None:
    with pytest.raises(HotslotError) as refused:
        PublishCallback(hotslot, reference, **more)
    assert all(name in str(refused.value) for name in more)


@dataclass
class State:
    """A trainer's state, as far as the callback looks at it."""

    global_step: int = 3
    epoch: float = 0.5
    log_history: tuple[dict[str, object], ...] = ()
    is_world_process_zero: bool = True


WEIGHTS = {"base_model.model.layer.lora_A.weight": np.ones((1, 1), np.float32)}
"""A model of the callback's is a PEFT model; the store is away, whatever it is given."""


def test_a_publication_that_fails_ends_the_training_or_is_a_warning(
    hotslot: BlockingHotslotClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = partial(hotslot.publish, WEIGHTS, {"peft_type": "LORA", "r": 1})
    monkeypatch.setattr(hotslot, "publish", lambda model, config, reference, **more: publish(reference, **more))
    seen: list[object] = []
    ending, going_on = (
        PublishCallback(hotslot, "bot:train", every_steps=3, on_published=seen.append, on_error=on_error)
        for on_error in ("raise", OnError.WARN)
    )
    with pytest.raises(StoreUnavailableError):
        ending.on_step_end(None, State(), None, model=None)
    # The last step was not published, and is tried again.
    for going in (going_on.on_step_end, going_on.on_train_end):
        with pytest.warns(PublicationWarning, match="bot:train was not published at step 3: the store"):
            going(None, State(), None, model=None)
    assert not seen


def test_what_a_callers_own_function_raises_ends_the_training(hotslot: BlockingHotslotClient) -> None:
    """Only a publication's failure is a warning."""

    class Broken(HotslotError):
        """Of the caller's own call."""

    def fail(version: object) -> None:
        raise Broken("evaluation failed")

    callback = PublishCallback(hotslot, "bot", every_steps=1, on_published=fail, on_error="warn")
    hotslot.publish = lambda *args, **more: None  # type: ignore[method-assign,assignment]
    with pytest.raises(Broken):
        callback.on_step_end(None, State(), None, model=None)


def test_the_last_version_has_the_newest_figures_though_a_summary_is_logged_after_them() -> None:
    log: list[dict[str, object]] = [
        {"loss": 2.0, "learning_rate": 0.1, "step": 1},
        {"loss": 1.5, "learning_rate": 0.05, "step": 2},
        {"eval_loss": 1.75, "step": 2},
        {"train_runtime": 3.0, "train_loss": 1.8, "step": 2},
    ]
    assert transformers.newest_figures(log) == {"loss": 1.5, "learning_rate": 0.05, "eval_loss": 1.75}
    assert transformers.newest_figures([]) == {}
