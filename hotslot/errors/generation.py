"""Errors of requests and adapters on a worker: prompts, slots, queues, steps of the model."""

from collections.abc import Sequence

from hotslot.errors.kinds import (
    ExhaustedError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from hotslot.errors.violations import FieldViolation


class EmptyPromptError(InvalidRequestError, reason="EMPTY_PROMPT"):
    """A prompt without a single token."""

    def __init__(self) -> None:
        super().__init__([FieldViolation("prompt", "the prompt has no tokens; give text, chat messages or token ids")])


class PromptTooLongError(InvalidRequestError, reason="PROMPT_TOO_LONG"):
    """A prompt that leaves no room for an answer."""

    def __init__(self, num_tokens: int, max_tokens: int, *, at_least: bool = False) -> None:
        """`at_least` says that the prompt has so many tokens or more."""
        found = f"found {'at least ' * at_least}{num_tokens} tokens"
        super().__init__([FieldViolation("prompt", f"{found}, at most {max_tokens} fit; shorten the prompt")])


class AdapterNotLoadedError(NotFoundError, reason="ADAPTER_NOT_LOADED"):
    """An adapter that this worker does not hold."""

    def __init__(self, reference: str) -> None:
        super().__init__(f"adapter {reference!r} is not loaded on this worker", reference)


class AdapterPinnedError(PreconditionError, reason="ADAPTER_PINNED"):
    """An unload of something pinned."""

    def __init__(self, reference: str) -> None:
        super().__init__(
            f"adapter {reference!r} is pinned on this worker; unpin it, or change its policy, first", reference
        )


class ModelNotServableError(PreconditionError, reason="MODEL_NOT_SERVABLE"):
    """A base model that this version cannot answer for exactly; the subject is the layer at fault, or the model."""


class CompilerMissingError(PreconditionError, reason="COMPILER_MISSING"):
    """A worker without a C++ compiler that would have to compile."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"there is no C++ compiler here, and {why}; ship code that a worker with the same settings compiled on "
            "such a processor (HOTSLOT_SHARE_COMPILED_CODE, or python -m worker_service.compiled_code), or install g++",
            "compiler",
        )


class SlotsFullError(ExhaustedError, reason="SLOTS_FULL"):
    """All slots hold adapters that are in use or pinned."""


class QueueFullError(ExhaustedError, reason="QUEUE_FULL"):
    """Too many requests wait already."""


class AdaptersDisabledError(UnavailableError, reason="ADAPTERS_DISABLED"):
    """A worker on which the tenant has switched its adapters off."""


class EngineFailedError(UnavailableError, reason="ENGINE_FAILED"):
    """A worker's engine could not compute, or does not answer."""


class StepFailedError(InternalError, reason="STEP_FAILED"):
    """A request whose step of the model failed, also when it was computed alone.

    Not UnavailableError: the request may be what broke it, and would break others' steps wherever it is tried again.
    """


class NonFiniteLogitsError(InternalError, reason="NON_FINITE_LOGITS"):
    """A request for which the model's logits are NaN or infinite, so that no token can be chosen.

    Not UnavailableError: another worker would compute the same.
    """

    def __init__(self, num_tokens: int, adapters: Sequence[str]) -> None:
        names = ", ".join(adapters)
        blame = f"the model with {names}" if names else "the model"
        cure = "give the adapters smaller weights, or have it" if names else "have it"
        super().__init__(
            f"after {num_tokens} tokens of prompt and answer the logits are not finite, so no token can be chosen: "
            f"{blame} leaves the range of its element type; {cure} served in one with more (HOTSLOT_DTYPE)"
        )
