"""Revision of a tenant's catalog with all that a client wrote, so that what it asks for next is served by that."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb


@dataclass(slots=True)
class WrittenRevision:
    """The largest revision that the store answered to a client's writes. Belongs to the client's event loop."""

    value: int = 0
    """0 before the first write, and with stores of releases that tell none."""

    def take(self, answered: int, known_before: int) -> None:
        """Take in the answer to a write that began when `known_before` was the value.

        A catalog's revisions only grow. An answer below what was known before the write began is that of a catalog that
        was created anew, in which the larger one stands for nothing.
        """
        if 0 < answered < known_before <= self.value:
            self.value = answered
        else:
            self.value = max(self.value, answered)

    async def after(self, call: Callable[[Any, Any], Awaitable[Any]], method: object, request: object) -> Any:
        """Call a method that changes the catalog, and take in its answer."""
        known_before = self.value
        response = await call(method, request)
        self.take(response.revision, known_before)
        return response

    def needed_by(self, message: pb.GenerateRequest) -> int:
        """The revision that a request must be served at; none for the base model alone, which no write changes."""
        return message.min_revision if message.base_only else max(message.min_revision, self.value)
