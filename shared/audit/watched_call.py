"""One call as the audit log sees it: its caller, the objects that it names, and its outcome."""

import re
import time
from typing import Any
from urllib.parse import unquote

from hotslot.trace_context import TraceContext, trace_context_of
from hotslot.tracing import context_to_carry
from shared.audit import objects
from shared.audit.acts import Act, act_of
from shared.audit.audit_log import AuditLog
from shared.identity.callers import Caller

REQUEST_ID_KEY = "x-request-id"
REQUEST_ID = re.compile(r"[A-Za-z0-9._:/@+=-]{1,128}")


class WatchedCall:
    """A call that is in the log."""

    def __init__(self, audit: AuditLog, method: str, act: Act, context: Any, *, knows_callers: bool) -> None:
        """Without `knows_callers` each caller is believed, and none is unknown."""
        self._audit = audit
        self._act = act
        self._began_s = time.perf_counter()
        self._is_known = not knows_callers
        self._objects: objects.Objects = {}
        self.is_requested = self._is_answered = False
        self._record: dict[str, Any] = {
            "principal": "",
            "acting_for": "",
            "tenant": "",
            "peer": unquote(str(context.peer())),
            "rpc": method.removeprefix("/"),
            "act": act.value,
            **_ids(context),
        }

    def known(self, caller: Caller | None, tenant: str) -> None:
        """The call's caller may make it."""
        self._is_known = True
        self._record["tenant"] = tenant
        if caller is not None:
            self._record |= {"principal": caller.via or caller.name, "acting_for": caller.name if caller.via else ""}

    async def requested(self, message: Any) -> None:
        """The call's message, or the first of them, is known; raises AuditUnavailableError before a change is made."""
        self.is_requested = True
        self._objects |= objects.of_request(message)
        if REQUEST_ID.fullmatch(given := getattr(message, "request_id", "")):
            self._record["request_id"] = given
        await self._audit.begin(self._told())

    def answered(self, message: Any) -> None:
        """An answer goes out; a use has its digests in the first, a change in the one that ends it."""
        if self._is_answered:
            return
        found = objects.of_answer(message)
        self._objects |= found
        self._is_answered = bool(found) or self._act is Act.USE

    async def ended(self, code: str, reason: str, *, waits: bool) -> None:
        """Write how it ended; `waits` until the line is in its place, which a cancelled call does not."""
        if not self._is_known and not self._audit.may_tell_of_unknown(time.time()):
            return
        duration_ms = round((time.perf_counter() - self._began_s) * 1e3, 3)
        writing = self._audit.tell({**self._told(), "code": code, "reason": reason, "duration_ms": duration_ms})
        if waits:
            await writing

    def _told(self) -> dict[str, Any]:
        return {**self._record, "object": self._objects}


def watched(audit: AuditLog | None, method: str, context: Any, *, knows_callers: bool) -> WatchedCall | None:
    """The call as the log sees it; None where it is not in the log."""
    if audit is None or not audit.has(act := act_of(method)):
        return None
    return WatchedCall(audit, method, act, context, knows_callers=knows_callers)


def ids_of(request_id: str | None, given: TraceContext | None) -> dict[str, str]:
    """Ids of a request: the one that its caller gave it, where it has the form of such, and that of its trace."""
    trace = context_to_carry() or given
    return {
        "request_id": request_id if request_id and REQUEST_ID.fullmatch(request_id) else "",
        "trace_id": trace.trace_id if trace is not None else "",
    }


def _ids(context: Any) -> dict[str, str]:
    pairs = [(key, value) for key, value in context.invocation_metadata() or () if isinstance(value, str)]
    return ids_of(dict(pairs).get(REQUEST_ID_KEY), trace_context_of(pairs))
