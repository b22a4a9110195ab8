"""`python -m tests.support.later_start SETTINGS`: a model is loaded as a worker's process loads it.

Prints the stages of the start, and which of the modules that take long it imported, as JSON.
"""

import json
import sys

from worker_service.__main__ import _load
from worker_service.settings import WorkerSettings

TAKE_LONG = (
    "torch._dynamo", "torch._inductor", "torch.onnx", "torch.distributed.tensor", "torch.distributed.fsdp",
    "torch.distributed.checkpoint", "accelerate", "scipy", "sklearn", "pandas",
    "setuptools", "torch.utils.cpp_extension", "peft",
)  # fmt: skip
"""Modules that a start without anything to compile has no use for. sympy is imported by torch, for the first values of
an embedding that has no memory yet."""

if __name__ == "__main__":
    loaded = _load(WorkerSettings(**json.loads(sys.argv[1])), None)
    stages = [stage.name for stage in loaded.startup_stages]
    print(json.dumps({"stages": stages, "imported": [name for name in TAKE_LONG if name in sys.modules]}))  # noqa: T201
