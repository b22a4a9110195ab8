"""The audit log: one line for each call that is in it, written before the caller hears how the call ended.

Lines are JSON in printable ASCII, so that no name can end a line or move a terminal's cursor. They go to a file of
their own, on a thread, or to the logger `hotslot.audit`.
"""

import asyncio
import json
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import structlog

from hotslot.errors import AuditUnavailableError, FieldViolation, InvalidRequestError
from shared.audit.acts import Act
from shared.audit.audit_file import AuditFile
from shared.audit.settings import AuditSettings

LOGGER = "hotslot.audit"
MAX_WAITING_LINES = 8192
"""Lines that wait for the file; beyond it they count as not written."""
MAX_UNKNOWN_A_SECOND = 20
"""Lines a second about callers who are not known: those may cost no more of the disk, whatever they send."""
RETRY_AFTER_S = 1.0

log = structlog.get_logger(__name__)
audit_logger = structlog.get_logger(LOGGER)

Record = Mapping[str, Any]


class AuditLog:
    """Log of one process. Lives on the event loop; `opened_audit` makes and closes it."""

    def __init__(self, service: str, settings: AuditSettings) -> None:
        """Raises InvalidRequestError for a file that cannot be written."""
        self._service = service
        self._what = settings.audit
        self._refuses = settings.audit_failure == "refuse" and settings.audit_file is not None
        self._thread: ThreadPoolExecutor | None = None
        self._file: AuditFile | None = None
        self.num_lines = self.num_lost = self.num_unknown = 0
        """Lines since the start: told, not written to the file, and left out since their callers are not known."""
        self._num_waiting = 0
        self._second, self._unknown_in_second, self._left_out = 0, 0, 0
        # Other logs may be quieter.
        logging.getLogger(LOGGER).setLevel(logging.INFO)
        if settings.audit_file is not None and self._what != "off":
            try:
                self._file = AuditFile(settings.audit_file)
            except OSError as exc:
                problem = f"{settings.audit_file} cannot be written: {exc.strerror or exc}"
                raise InvalidRequestError([FieldViolation("audit_file", problem)]) from exc
            self._thread = ThreadPoolExecutor(1, "audit")

    def has(self, act: Act) -> bool:
        """Tell whether such calls are in the log."""
        return act is not Act.LOOK and (self._what == "all" or (self._what == "changes" and act is Act.CHANGE))

    async def begin(self, record: Record) -> None:
        """Write that a change begins, where none is made without; raises AuditUnavailableError."""
        if self._refuses and record["act"] == Act.CHANGE.value and not await self.tell({**record, "code": "BEGUN"}):
            problem = "the audit log cannot be written, and no change is made meanwhile"
            raise AuditUnavailableError(problem, retry_after_s=RETRY_AFTER_S)

    def tell(self, record: Record) -> "asyncio.Future[bool]":
        """Begin to write a line; the result says whether it is in its place."""
        loop = asyncio.get_running_loop()
        told: Record = {"time": datetime.now(UTC).isoformat(), "event": "audit", "service": self._service, **record}
        self.num_lines += 1
        if self._thread is None:
            audit_logger.info("audit", **{name: _plain(value) for name, value in told.items() if name != "event"})
            return _done(loop, True)
        if self._num_waiting >= MAX_WAITING_LINES:
            self._lose(told, "too many lines wait for the file")
            return _done(loop, False)
        self._num_waiting += 1
        return asyncio.ensure_future(self._written(told))

    def may_tell_of_unknown(self, now_s: float) -> bool:
        """Take one of the lines that are left for callers who are not known."""
        if int(now_s) != self._second:
            if self._left_out:
                log.warning("audit_lines_left_out", num_lines=self._left_out, why="too many callers are not known")
            self._second, self._unknown_in_second, self._left_out = int(now_s), 0, 0
        self._unknown_in_second += 1
        if self._unknown_in_second <= MAX_UNKNOWN_A_SECOND:
            return True
        self.num_unknown += 1
        self._left_out += 1
        return False

    def close(self) -> None:
        """Write what waits, then let go of the file."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        if self._file is not None:
            self._file.close()

    async def _written(self, record: Record) -> bool:
        assert self._thread is not None
        assert self._file is not None
        line = json.dumps(record, separators=(",", ":")).encode("ascii")
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._file.append, line)
        except OSError as exc:
            self._lose(record, exc.strerror or str(exc))
            return False
        finally:
            self._num_waiting -= 1
        return True

    def _lose(self, record: Record, why: str) -> None:
        self.num_lost += 1
        log.error("audit_not_written", why=why, line=json.dumps(record, separators=(",", ":")))


@contextmanager
def opened_audit(service: str, settings: AuditSettings) -> Iterator[AuditLog]:
    """The audit log of a process, until the block is left; raises InvalidRequestError for a file it cannot write."""
    audit = AuditLog(service, settings)
    try:
        yield audit
    finally:
        audit.close()


def _plain(value: Any) -> Any:
    """A value for the process's other logs, whose forms escape nothing: texts in printable ASCII."""
    if isinstance(value, str):
        return json.dumps(value)[1:-1]
    if isinstance(value, Mapping | list):
        return json.dumps(value)
    return value


def _done(loop: asyncio.AbstractEventLoop, result: bool) -> "asyncio.Future[bool]":
    done: asyncio.Future[bool] = loop.create_future()
    done.set_result(result)
    return done
