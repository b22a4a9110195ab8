"""The seam between loading a model and whoever shares compiled code with other workers. Without torch or a network."""

from typing import Protocol

from worker_service.cache.archive import CodeKey


class SharedCode(Protocol):
    """Called from the thread that loads the model."""

    def bring(self, key: CodeKey) -> None:
        """Have others' code for this key in the cache directory, if there is any; never fails."""
        ...

    def settle(self, key: CodeKey, num_compiled: int) -> None:
        """Everything is compiled, so many graphs of it here; returns at once."""
        ...
