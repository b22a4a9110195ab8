"""Settings of the audit log, which every service has."""

from pathlib import Path
from typing import Literal

from shared.settings import Settings

AuditWhat = Literal["off", "changes", "all"]
AuditFailure = Literal["serve", "refuse"]


class AuditSettings(Settings):
    """The audit log of a service."""

    audit: AuditWhat = "changes"
    """Calls in the audit log: changes (of adapters, uploads, policies, base models, workers), all (uses too: every
    generation, and every read of weights), or off."""
    audit_file: Path | None = None
    """File that the audit log is appended to, a JSON object a line; it may be renamed at any time. None means the
    logger hotslot.audit, among the process's other logs."""
    audit_failure: AuditFailure = "serve"
    """While audit_file cannot be written: serve goes on, and puts each such line among the process's other logs, as an
    error; refuse makes no change then, and writes a line before each change as well as after it."""
