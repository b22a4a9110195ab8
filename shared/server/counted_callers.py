"""Names that callers are counted by."""

from collections.abc import Iterable
from typing import Any

from hotslot.formats.principals import Principal, Scope
from hotslot.rpc.security import AUTHORIZATION
from shared.identity.callers import Caller
from shared.identity.parties import address_of

PRINCIPAL = "principal "
_FOR_OTHERS = frozenset({Scope.WORKER, Scope.GATEWAY})
CallMetadata = Iterable[tuple[str, str | bytes]]


def token_of(metadata: CallMetadata) -> str | None:
    """Value of a call's authorization, unchecked; None where it has none."""
    for key, value in metadata:
        if key == AUTHORIZATION and isinstance(value, str):
            return value
    return None


def stranger_of(context: Any) -> str:
    """Name that a call is counted by whose caller is not known."""
    return f"address {address_of(context.peer())}"


def counted_as(who: Principal | Caller) -> str:
    """Name that somebody is counted by; empty for one that calls for others."""
    return "" if who.scopes & _FOR_OTHERS else f"{PRINCIPAL}{who.name}"


def counted_name_of(caller: Caller) -> str:
    """Name that an allowed call is counted by; empty for one that is made for somebody else."""
    return "" if caller.via else counted_as(caller)
