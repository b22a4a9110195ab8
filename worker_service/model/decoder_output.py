"""Keeps what a model's decoder computed in a step, so that its head can be applied to it several times."""

from typing import Any

from transformers import PreTrainedModel


class DecoderOutput:
    """Stands before the decoder of a causal language model.

    While recalling, the decoder hands out its last output instead of computing, so the model's forward applies the
    head (and whatever the architecture does to logits after it) to other positions of the same step. A model without
    a decoder of its own computes again, which writes the same keys and values and is only slower.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        decoder = model.base_model
        self.recalling = False
        self.keeps = True
        """False for steps of which nothing is recalled: what a captured one left would hold memory of its pool."""
        self._last: Any = None
        if decoder is not model:
            self._compute = decoder.forward
            decoder.forward = self._forward

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.recalling:
            return self._last
        output = self._compute(*args, **kwargs)
        self._last = output if self.keeps else None
        return output
