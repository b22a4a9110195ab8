"""Logging: one stream, one shape, with the task's context on every line."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from shared.telemetry import LogFormat, bind_log_context, set_up_logging


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, config = root.handlers, root.level, structlog.get_config()
    yield
    root.handlers, root.level = handlers, level
    structlog.configure(**config)
    structlog.contextvars.clear_contextvars()


def lines(log_format: LogFormat, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    set_up_logging(log_format, level, stream=stream)  # type: ignore[arg-type]
    return stream


def test_both_kinds_of_logger_write_json_with_the_bound_context() -> None:
    stream = lines("json")
    bind_log_context(worker_id="w-1", tenant="acme")
    structlog.get_logger("ours").info("swapped", slots=[1, 2])
    logging.getLogger("theirs").warning("careful %s", "now")
    first, second = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (first["event"], first["slots"], first["worker_id"], first["logger"]) == ("swapped", [1, 2], "w-1", "ours")
    assert (second["event"], second["level"], second["tenant"]) == ("careful now", "warning", "acme")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_names_the_error_and_shows_no_local_variables(log_format: LogFormat) -> None:
    stream = lines(log_format)
    password = "hunter" + "2"
    try:
        raise KeyError(len(password))
    except KeyError:
        structlog.get_logger("ours").exception("incident")
    assert "KeyError" in stream.getvalue()
    assert password not in stream.getvalue()


def test_a_traceback_is_inside_the_json_line() -> None:
    stream = lines("json")
    try:
        raise KeyError("x")
    except KeyError:
        structlog.get_logger("ours").exception("incident")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["exception"][0]["exc_type"] == "KeyError"


def test_the_console_format_is_for_people() -> None:
    stream = lines("console")
    structlog.get_logger("ours").info("swapped", ms=3)
    assert "swapped" in stream.getvalue()
    assert "ms=3" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_the_level_is_respected() -> None:
    stream = lines("json", "warning")
    structlog.get_logger("ours").info("no")
    logging.getLogger("httpx").info("no")
    assert stream.getvalue() == ""


async def test_context_bound_in_one_task_stays_out_of_another() -> None:
    stream = lines("json")

    async def work(name: str) -> None:
        bind_log_context(tenant=name)
        await asyncio.sleep(0)
        structlog.get_logger("ours").info("x", name=name)

    await asyncio.gather(work("a"), work("b"))
    assert all(entry["tenant"] == entry["name"] for entry in map(json.loads, stream.getvalue().splitlines()))
