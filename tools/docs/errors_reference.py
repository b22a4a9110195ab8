"""Reference of the errors: each class with its status, reason and details, and the way on."""

import inspect
import re

from gateway_service.errors import HTTP_STATUSES
from hotslot.errors import HotslotError
from hotslot.errors.details import Detail
from hotslot.rpc.details import DOMAIN
from hotslot.rpc.status import STATUS_TABLE, StatusRow
from tools.docs.error_remedies import remedy
from tools.docs.markdown import code, prose, table, target

CARRIED = {
    Detail.FIELDS: "BadRequest: each field with what is wrong with it",
    Detail.VIOLATIONS: "BadRequest: each violation",
    Detail.RESOURCE: "ResourceInfo: what was not found",
    Detail.PRECONDITION: "PreconditionFailure: what stands in the way",
    Detail.QUOTA: "QuotaFailure: what is full",
    Detail.RETRY: "RetryInfo: when to try again",
    Detail.TEXT: "ErrorInfo.metadata",
    Detail.NUMBER: "ErrorInfo.metadata",
}
"""Details of a status by what an error declares."""


def page() -> str:
    """The page."""
    overview = table(("reason", "status", "HTTP", "retry"), map(_short, STATUS_TABLE))
    return "\n".join([_HEAD.format(domain=code(DOMAIN)), overview, *map(_long, STATUS_TABLE)])


def meaning(error: type[HotslotError]) -> str:
    """Sentences that the class begins with."""
    return inspect.getdoc(error) or ""


def is_retried(row: StatusRow) -> bool:
    """True if the same request may succeed later or elsewhere."""
    return HTTP_STATUSES[row.code].is_retried


def _short(row: StatusRow) -> tuple[str, str, str, str]:
    link = f"[{row.reason}](#{anchor(row)})"
    return link, code(row.code.name), str(HTTP_STATUSES[row.code].status), "yes" if is_retried(row) else "no"


def _long(row: StatusRow) -> str:
    error = row.error
    carried = sorted({(CARRIED[detail], name) for name, detail in error.carries.items()})
    facts = [
        ("class", code(f"hotslot.errors.{error.__name__}") + _base(error)),
        ("status", f"{code(row.code.name)}, over HTTP {HTTP_STATUSES[row.code].status}"),
        ("retry", _retry(row)),
        ("what to do", prose(remedy(error))),
        ("details", "; ".join(f"{text} ({code(name)} in Python)" for text, name in carried) or "none"),
    ]
    return f"{target(anchor(row))}## {row.reason}\n\n{_paragraphs(error)}\n\n" + table(("", ""), facts)


def _paragraphs(error: type[HotslotError]) -> str:
    return "\n\n".join(prose(" ".join(part.split())) for part in re.split(r"\n\s*\n", meaning(error)))


def _retry(row: StatusRow) -> str:
    if not is_retried(row):
        return "no: the same request fails again"
    return "yes: later, after the time in RetryInfo where there is one"


def _base(error: type[HotslotError]) -> str:
    base = error.__mro__[1]
    return f", a {code(base.__name__)}" if issubclass(base, HotslotError) else ""


def anchor(row: StatusRow) -> str:
    """Anchor of an error on the page."""
    return f"error-{row.reason.lower().replace('_', '-')}"


_HEAD = """# Errors

Every error has a class in `hotslot.errors`, a gRPC status and a reason, which is stable and stands for one class alone.
The status carries `google.rpc.ErrorInfo` with the domain {domain} and the reason (and once more with "hotslot", for
clients of earlier releases), and the details that the class names; over HTTP the reason is `code` of the error. The
message says what failed, what was found against what was expected, and
what to do.

"Retry" says whether the same request may succeed later or on another worker. hotslot's own clients retry calls that are
safe to repeat by themselves.
"""
