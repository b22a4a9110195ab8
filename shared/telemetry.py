"""Logging for every process: structlog, as JSON lines or for a console, with standard logging routed through it."""

import logging
import sys
from typing import Literal, TextIO

import structlog

LogFormat = Literal["json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]

# Chatty at info, and never about us.
_QUIET_LOGGERS = ("httpx", "httpx2", "httpcore", "httpcore2", "urllib3", "asyncio", "filelock", "huggingface_hub")

# Without local variables: they hold prompts, passwords and whole tensors.
_PLAIN_FRAMES = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)


def set_up_logging(
    log_format: LogFormat = "console", level: LogLevel = "info", *, stream: TextIO | None = None
) -> None:
    """Send all logs of this process to one stream (standard error); called once, by `__main__`.

    Whatever `bind_log_context` set for the running task is on every line.
    """
    target = sys.stderr if stream is None else stream
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    render: list[structlog.typing.Processor]
    if log_format == "json":
        render = [structlog.processors.ExceptionRenderer(_PLAIN_FRAMES), structlog.processors.JSONRenderer()]
    else:
        render = [
            structlog.dev.ConsoleRenderer(colors=target.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        # Loggers are made at import, before this is called.
        cache_logger_on_first_use=False,
    )


def bind_log_context(**context: str) -> None:
    """Put these on every line that the running task logs, and the tasks it starts: worker_id, request_id, tenant."""
    structlog.contextvars.bind_contextvars(**context)
