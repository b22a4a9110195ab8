"""End of a worker's process: in order, or at once where a thread that hangs would not let it."""

import asyncio
import logging
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from shared.failed_start import EXIT_FAILED
from worker_service.engine.loop import STOP_TIMEOUT_S, Engine

EXIT_OK = 0


@dataclass(slots=True)
class ProcessEnding:
    """End of the process, as far as it is known."""

    code: int = EXIT_FAILED
    """Until it is known that all went well."""
    leaves_threads: bool = False
    """True if a thread may still be computing."""
    failure: Exception | None = None
    """Reason why the process ends, where nothing asked it to."""
    failed_start: bool = False
    """True if that kept it from starting."""

    def stop(self, engine: Engine, lost: asyncio.Event) -> None:
        """Stop the engine; one that is lost is not waited for."""
        if not engine.stop(0.0 if lost.is_set() else STOP_TIMEOUT_S):
            self.leaves_threads = True

    def leave(self) -> NoReturn:
        """End the process with the code.

        While a thread is in native code, the interpreter must not be taken down: the thread would be ended in the
        middle of that code, which aborts the process, whatever the code was to be.
        """
        if not self.leaves_threads:
            sys.exit(self.code)
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(self.code)
