"""A callback for transformers' Trainer, and so for TRL's and others made from it: publishes the adapter as it trains.

trainer = SFTTrainer(model=model, …, callbacks=[PublishCallback(hotslot, "me/bot:train", every_steps=10, keep=5)])
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from transformers import TrainerCallback

from hotslot.clients.blocking import BlockingHotslotClient
from hotslot.clients.publication_fields import PUSH_ARGUMENTS, naming, version_request
from hotslot.codec import mismatch
from hotslot.contract.catalog import PublishedVersion
from hotslot.errors import HotslotError, InvalidRequestError

METRICS = ("loss", "eval_loss", "learning_rate", "reward")
"""Figures of the trainer's log that become annotations, the newest of each."""


class OnError(StrEnum):
    """Consequence of a publication that failed."""

    RAISE = "raise"
    """The training ends with its error."""
    WARN = "warn"
    """The training goes on, and a PublicationWarning says why workers stay at the version before."""


class PublicationWarning(UserWarning):
    """A publication that failed, while the training went on."""


def newest_figures(log_history: Iterable[Mapping[str, object]]) -> dict[str, float]:
    """METRICS as the trainer last logged each: evaluations, and the summary at the end, have lines of their own."""
    found: dict[str, float] = {}
    for logged in log_history:
        found |= {name: value for name in METRICS if isinstance(value := logged.get(name), int | float)}
    return found


class PublishCallback(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Publishes every so many steps and at the end; the training goes on once workers serve the new version."""

    def __init__(
        self,
        client: BlockingHotslotClient,
        reference: str,
        *,
        every_steps: int = 0,
        tags_at_end: Sequence[str] = (),
        keep: int | None = None,
        base_model: str = "",
        annotations: Mapping[str, str | float] | None = None,
        on_published: Callable[[PublishedVersion], object] = lambda version: None,
        on_error: OnError | str = OnError.RAISE,
    ) -> None:
        """`base_model` is its name in the store, where the model was loaded from elsewhere.

        `every_steps` 0 publishes whenever the trainer saves, and `on_published` hears of each version.

        With `on_error="warn"` a publication that fails is a PublicationWarning, and the next step's may succeed.

        The last version gets `tags_at_end` too. Annotations are the step, the epoch, METRICS and `annotations`. Raises
        InvalidReferenceError and InvalidRequestError for what the first publication could not be sent with.
        """
        if type(every_steps) is not int or every_steps < 0:
            raise InvalidRequestError([mismatch("every_steps", every_steps, "a whole number of steps, or 0")])
        if on_error not in list(OnError):
            raise InvalidRequestError([mismatch("on_error", on_error, "'raise' or 'warn'")])
        with naming(PUSH_ARGUMENTS | {"tags": "tags_at_end"}):
            version_request(reference, base_model, annotations=annotations, tags=tags_at_end, keep=keep)
        self._client = client
        self._reference = reference
        self._every_steps = every_steps
        self._tags_at_end = tags_at_end
        self._keep = keep
        self._base_model = base_model
        self._annotations = dict(annotations or {})
        self._on_published = on_published
        self._on_error = OnError(on_error)
        self._published_step = -1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Publish where a step is due."""
        if self._every_steps and state.global_step % self._every_steps == 0:
            self._publish(state, kwargs["model"], ())

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Publish what the trainer saved, where it says when."""
        if not self._every_steps:
            self._publish(state, kwargs["model"], ())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Publish the last step."""
        if self._tags_at_end or state.global_step != self._published_step:
            self._publish(state, kwargs["model"], self._tags_at_end)

    def _publish(self, state: Any, model: Any, tags: Sequence[str]) -> None:
        if not state.is_world_process_zero:
            return
        step = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4)}
        try:
            published = self._client.publish(
                model,
                None,
                self._reference,
                metadata=step | newest_figures(state.log_history) | self._annotations,
                tags=tags,
                keep=self._keep,
                base_model=self._base_model,
            )
        except HotslotError as exc:
            if self._on_error is OnError.RAISE:
                raise
            text = f"{self._reference} was not published at step {state.global_step}: {exc.message}"
            warnings.warn(text, PublicationWarning, stacklevel=2)
            return
        self._published_step = state.global_step
        self._on_published(published)
