"""Refusals of weights in 8 bits where the CPU kernels, which alone compute with them, are not to be had."""

import torch

from hotslot.errors import FieldViolation, InvalidRequestError
from worker_service.model.cpu import library
from worker_service.model.int8_weights import Int8Weights
from worker_service.model.options import ModelOptions

INT8 = "int8"
DTYPES = tuple(str(dtype).removeprefix("torch.") for dtype in library.DTYPES)
"""Element types of activations and adapters beside them."""


def check_weights(options: ModelOptions) -> None:
    """Refuse weights in 8 bits for a device or an element type that has no kernels; raises InvalidRequestError."""
    is_served = torch.device(options.device).type == "cpu" and options.dtype in DTYPES and options.cpu_kernels
    if options.weights == INT8 and not is_served:
        raise _needs_kernels(f"they are for the device cpu, in {' and '.join(DTYPES)}, with cpu_kernels")


def check_kernels(weights: Int8Weights, *, has_kernels: bool) -> None:
    """Refuse weights in 8 bits where the kernels were not built; raises InvalidRequestError."""
    if weights and not has_kernels:
        raise _needs_kernels("they could not be built; the log says why")


def _needs_kernels(problem: str) -> InvalidRequestError:
    shown = f"found {INT8}, whose products only the CPU kernels compute; {problem}"
    return InvalidRequestError([FieldViolation("weights", shown)])
