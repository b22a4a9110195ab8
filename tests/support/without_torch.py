"""`python -m tests.support.without_torch MODULE…`: imports modules where torch and its company cannot be."""

import importlib
import sys

if __name__ == "__main__":
    for name in ("torch", "transformers", "peft"):
        sys.modules[name] = None  # type: ignore[assignment]
    for name in sys.argv[1:]:
        importlib.import_module(name)
