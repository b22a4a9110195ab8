"""Process that renders chats, one after the other, for a worker: its time and its memory are bounded by the system.

Messages come and go through one socket, each with its length before it. A failure of a template is the answer; work
without end is ended, if need be with the process, and the worker starts another one.
"""

import json
import resource
import signal
import socket
import struct
import sys
from types import FrameType
from typing import Any

import jinja2

from worker_service.templates.rendering import ChatRenderer, RefusedError
from worker_service.templates.special_text import MARKS

CPU_S = 1.0
"""Time of a processor that one request may take."""
MAX_MEMORY_BYTES = 2**30
MAX_PROBLEM_CHARS = 500
"""Longest description of a template's failure that callers are told."""
HEADER = struct.Struct("<I")
TEXT, MARKED, REFUSED = b"T", b"M", b"R"
"""Kinds of answers: a prompt; a mark and a prompt; the field at fault and what is wrong, as JSON."""

_NO_MARKS = str.maketrans("", "", "".join(MARKS))


class _TooSlowError(BaseException):
    """The time is up; no `except Exception` on the way holds it."""


def answer(renderer: ChatRenderer, request: bytes) -> bytes:
    """Render one request. Raises _TooSlowError when the time is up."""
    try:
        rendered = renderer.render(json.loads(request))
        return MARKED + (rendered.mark + rendered.text).encode() if rendered.mark else TEXT + rendered.text.encode()
    except RefusedError as exc:
        return _refused(exc.field, exc.problem)
    except jinja2.TemplateSyntaxError as exc:
        return _refused("chat", f"this model's chat template cannot be used: line {exc.lineno}: {exc.message}")
    except jinja2.TemplateError as exc:
        return _refused("chat.messages", f"the model's chat template refuses them: {exc}")
    except Exception as exc:  # noqa: BLE001 (a template raises whatever it does wrong)
        told = " ".join(f"{type(exc).__name__}: {exc}".split())
        return _refused("chat", f"this model's chat template cannot be used: {told}")


def _refused(field: str, problem: str) -> bytes:
    # A template may raise in the words of the whole conversation, in which special tokens are marked.
    told = problem[:MAX_PROBLEM_CHARS].translate(_NO_MARKS)
    return REFUSED + json.dumps([field, told if len(problem) <= MAX_PROBLEM_CHARS else told + "…"]).encode()


def main() -> None:
    """Answer what comes through the socket whose number is the first argument, until it is closed."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Interrupts of the terminal are the worker's to act on: it closes the socket when it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, _on_time_up)
    connection = socket.socket(fileno=int(sys.argv[1]))
    model = _receive(connection)
    if model is None:
        return
    renderer = ChatRenderer(**json.loads(model))
    while (request := _receive(connection)) is not None:
        # The first timer interrupts Python; the second one ends the process where that is stuck in one operation.
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        signal.setitimer(signal.ITIMER_VIRTUAL, 2 * CPU_S)
        try:
            found = answer(renderer, request)
        except _TooSlowError:
            found = _refused("chat", f"this model's chat template took more than {CPU_S:g} s for it")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        connection.sendall(HEADER.pack(len(found)))
        connection.sendall(found)


def _on_time_up(signum: int, frame: FrameType | None) -> Any:
    raise _TooSlowError


def _receive(connection: socket.socket) -> bytes | None:
    """The next message; None at the end."""
    header = _exactly(connection, HEADER.size)
    return None if header is None else _exactly(connection, HEADER.unpack(header)[0])


def _exactly(connection: socket.socket, num_bytes: int) -> bytes | None:
    pieces, left = [], num_bytes
    while left:
        piece = connection.recv(min(left, 2**20))
        if not piece:
            return None
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


if __name__ == "__main__":
    main()
