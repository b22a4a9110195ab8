"""The worker's side of the processes that render chats: started when needed, ended when they do not answer."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from hotslot.errors import FieldViolation, InvalidRequestError, UnavailableError
from worker_service.templates.host import CPU_S, HEADER, MARKED, MAX_MEMORY_BYTES, REFUSED, TEXT
from worker_service.templates.rendering import Rendered

log = structlog.get_logger(__name__)

MAX_PROCESSES = 2
WALL_S = 60.0
"""Longest wait for an answer on a machine that is too busy to give the process its time."""
EXIT_S = 2.0
_ROOT = Path(__file__).resolve().parents[2]
_RUN = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from worker_service.templates.host import main; main()"


@dataclass(frozen=True, slots=True)
class ModelTemplates:
    """Chat templates of a model and its variables, as a process needs them."""

    sources: Mapping[str, str]
    """By name; the one that is meant where none is named is called `default`."""
    specials: Sequence[str]
    """Texts of the special tokens."""
    variables: Mapping[str, Any]
    """Variables that every template gets, such as `bos_token`."""


class TemplateProcesses:
    """A few processes that render one model's chats, each one chat at a time. Belongs to one event loop."""

    def __init__(self, model: ModelTemplates) -> None:
        self._model = json.dumps(asdict(model)).encode()
        self._idle: list[_Process] = []
        self._free = asyncio.Semaphore(MAX_PROCESSES)
        self._rendering: set[asyncio.Task[Rendered]] = set()

    async def render(self, request: Mapping[str, Any]) -> Rendered:
        """Render a request as `ChatRenderer.render` takes it.

        Raises InvalidRequestError in the template's own words, also where it takes too much time or memory, and
        UnavailableError where the machine is too busy to say.
        """
        # The caller may go away; the process answers all the same, and is free then.
        task = asyncio.create_task(self._render(json.dumps(request, ensure_ascii=False).encode()))
        self._rendering.add(task)
        task.add_done_callback(self._rendering.discard)
        return await asyncio.shield(task)

    def close(self) -> None:
        """End all processes."""
        for task in self._rendering:
            task.cancel()
        while self._idle:
            self._idle.pop().end()

    def _living(self) -> "_Process | None":
        while self._idle:
            process = self._idle.pop()
            if process.is_alive:
                return process
            process.end()
        return None

    async def _render(self, request: bytes) -> Rendered:
        async with self._free:
            process = self._living() or await _Process.start(self._model)
            try:
                async with asyncio.timeout(WALL_S):
                    answer = await process.ask(request)
            except TimeoutError as exc:
                process.end()
                raise UnavailableError(f"the chat template did not answer in {WALL_S:g} s; try again") from exc
            except (EOFError, OSError) as exc:
                raise InvalidRequestError([FieldViolation("chat", await process.cause_of_death())]) from exc
            except BaseException:
                process.end()
                raise
            self._idle.append(process)
        return _decoded(answer)


class _Process:
    """One process, and the socket to it."""

    def __init__(self, child: "subprocess.Popen[bytes]", connection: socket.socket) -> None:
        self._child = child
        self._connection = connection

    @classmethod
    async def start(cls, model: bytes) -> "_Process":
        """Start a process, and tell it what it is for."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            command = [sys.executable, "-c", _RUN, str(theirs.fileno())]
            child = await asyncio.to_thread(
                subprocess.Popen,
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        process = cls(child, ours)
        log.info("template_process_started", pid=child.pid)
        await process._send(model)
        return process

    @property
    def is_alive(self) -> bool:
        """False for one that the system has ended."""
        return self._child.poll() is None

    async def ask(self, request: bytes) -> bytes:
        """Send a request and wait for its answer; raises EOFError or OSError when the process ends instead."""
        await self._send(request)
        header = await self._receive(HEADER.size)
        return await self._receive(HEADER.unpack(header)[0])

    async def cause_of_death(self) -> str:
        """End what is left of the process, and say why it did not answer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._child.wait, EXIT_S)
        self.end()
        code = self._child.returncode
        log.warning("template_process_died", pid=self._child.pid, code=code)
        if code in (-signal.SIGVTALRM, -signal.SIGXCPU):
            return f"this model's chat template took more than {2 * CPU_S:g} s for it"
        return f"this model's chat template breaks its process, which has {MAX_MEMORY_BYTES >> 20:,} MiB of memory"

    def end(self) -> None:
        """End the process; again is harmless."""
        self._connection.close()
        self._child.kill()
        self._child.wait()

    async def _send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._connection, HEADER.pack(len(data)) + data)

    async def _receive(self, num_bytes: int) -> bytes:
        loop, pieces, left = asyncio.get_running_loop(), [], num_bytes
        while left:
            piece = await loop.sock_recv(self._connection, min(left, 2**20))
            if not piece:
                raise EOFError
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)


def _decoded(answer: bytes) -> Rendered:
    kind, body = answer[:1], answer[1:].decode()
    if kind == REFUSED:
        field, problem = json.loads(body)
        raise InvalidRequestError([FieldViolation(field, problem)])
    if kind == MARKED:
        return Rendered(body[1:], body[:1])
    assert kind == TEXT, kind
    return Rendered(body)
