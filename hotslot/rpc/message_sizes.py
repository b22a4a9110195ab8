"""Sizes of messages, for both ends of a call, and the meaning of gRPC's own refusals of larger ones.

A server's channel takes whatever a client's channel may send. A server that wants smaller requests refuses the others
itself, undecoded (`ServerOptions.max_request_bytes`), so that its callers get a reason. Beyond MAX_MESSAGE_BYTES gRPC
refuses by a status without one, at the sender where that has the same limit; our clients read it as what it means.
"""

import re

from hotslot.errors import FieldViolation, HotslotError, InternalError, InvalidRequestError

MAX_MESSAGE_BYTES = 16 * 2**20
"""Most bytes of any message, in either direction."""
MAX_GENERATE_BYTES = 4 * 2**20
"""Most bytes of a request to a worker: it is decoded on the event loop, so a large one holds up all others."""

_REFUSAL = re.compile(r"(SERVER: Received|CLIENT: Received|Received|Sent) message larger than max \((\d+) vs\. (\d+)\)")


def from_refusal(text: str) -> HotslotError | None:
    """Error that stands for gRPC's refusal of a message; None when the text is no such refusal."""
    found = _REFUSAL.search(text)
    if found is None:
        return None
    if found[1] == "CLIENT: Received":
        return InternalError(f"the answer is larger than a message may be: found {found[2]} bytes, at most {found[3]}")
    return too_large(int(found[2]), int(found[3]))


def too_large(size_bytes: int, max_bytes: int) -> InvalidRequestError:
    """The error for a request of that size."""
    problem = f"found a message of {size_bytes:,} bytes, at most {max_bytes:,} are taken; send less at once"
    return InvalidRequestError([FieldViolation("request", problem)])
