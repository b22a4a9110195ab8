"""Templates that never end, fill the memory or break their process harm their own request alone."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest

from hotslot.contract.generation import ChatMessage, ChatPrompt
from hotslot.errors import InvalidRequestError
from tests.support.chat_templates import CHATML
from tests.support.stack import is_running
from tests.support.waiting import until
from worker_service.front.chats import request_of
from worker_service.templates.host import CPU_S, MAX_MEMORY_BYTES
from worker_service.templates.process import MAX_PROCESSES, ModelTemplates, TemplateProcesses

BUSY_MACHINE_S = 120.0
HARMFUL = {
    "nested loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}x",
    "a loop in a filter": "{{ range(100000) | map('string') | join | length }}{% for i in range(99999) %}"
    "{{ range(100000) | sum }}{% endfor %}",
    "a string that doubles": "{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}"
    "{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "one huge string": "{{ 'x' * 10**10 }}",
    "padding": "{{ '%10000000000d' | format(1) }}{{ 'x'.ljust(10**10) }}",
    "one huge number": "{{ 10 ** (10 ** 10) }}",
    "endless output": "{% for i in range(99999) %}{% for j in range(99999) %}"
    "{{ messages[0].content }}{% endfor %}{% endfor %}",
    "a list that grows": "{% set ns = namespace(l=[1]) %}"
    "{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}x",
    "a filter that fills": "{{ 'x' | center(10**10) }}",
}


@asynccontextmanager
async def processes(source: str) -> AsyncIterator[TemplateProcesses]:
    made = TemplateProcesses(ModelTemplates({"default": source}, ["<|im_end|>"], {}))
    try:
        yield made
    finally:
        made.close()


def request(content: str = "hello", **more: Any) -> dict[str, Any]:
    return request_of(ChatPrompt((ChatMessage("user", content),), **more))


def pid_of(made: TemplateProcesses) -> int:
    return made._idle[0]._child.pid


async def turns_and_longest_wait_s(holds: Callable[[], bool]) -> tuple[int, float]:
    """Turns of the event loop until something holds, and how long it was held up, at most."""
    turns, longest_s = 0, 0.0
    while not holds():
        began_s = time.monotonic()
        await asyncio.sleep(0.01)
        turns, longest_s = turns + 1, max(longest_s, time.monotonic() - began_s - 0.01)
    return turns, longest_s


@pytest.mark.parametrize("name", HARMFUL)
async def test_a_harmful_template_is_refused_while_the_event_loop_goes_on(name: str) -> None:
    async with processes(HARMFUL[name] + "{{ messages[0].content }}") as made, asyncio.timeout(BUSY_MACHINE_S):
        asking = asyncio.create_task(made.render(request()))
        turns, waited_s = await turns_and_longest_wait_s(asking.done)
        with pytest.raises(InvalidRequestError, match=r"took more than|MemoryError|longer than|of memory|too large"):
            await asking
        # A busy machine holds it up, too, and the template for longer.
        assert waited_s < CPU_S or turns > 10, "the event loop waited for the template"


async def test_a_process_that_has_refused_or_died_is_followed_by_one_that_serves() -> None:
    slow = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}"
    source = "{% if messages[0].content == 'slow' %}" + slow + "{% endif %}{{ messages[0].content }}"
    async with processes(source) as made, asyncio.timeout(BUSY_MACHINE_S):
        assert (await made.render(request("one"))).text == "one"
        first = pid_of(made)
        with pytest.raises(InvalidRequestError):
            await made.render(request("slow"))
        assert (await made.render(request("two"))).text == "two"
        assert pid_of(made) == first
        os.kill(first, signal.SIGKILL)
        await until(lambda: not is_running(first))
        assert (await made.render(request("three"))).text == "three"
        second = pid_of(made)
        assert second != first
        rested_s = psutil.Process(second).cpu_times().user
        asking = asyncio.create_task(made.render(request("slow")))
        await until(lambda: psutil.Process(second).cpu_times().user > rested_s + 0.05)
        os.kill(second, signal.SIGKILL)
        with pytest.raises(InvalidRequestError, match="breaks its process"):
            await asking
        assert (await made.render(request("four"))).text == "four"


async def test_a_caller_that_goes_away_leaves_the_process_in_order() -> None:
    async with processes(CHATML) as made, asyncio.timeout(BUSY_MACHINE_S):
        await made.render(request())
        for number in range(5):
            gone = asyncio.create_task(made.render(request(f"gone {number}")))
            await asyncio.sleep(0)
            gone.cancel()
            assert f"here {number}" in (await made.render(request(f"here {number}"))).text


async def test_many_chats_share_a_few_processes() -> None:
    async with processes(CHATML) as made, asyncio.timeout(BUSY_MACHINE_S):
        texts = [f"chat {number}" for number in range(40)]
        found = await asyncio.gather(*(made.render(request(text)) for text in texts))
        assert all(text in rendered.text for text, rendered in zip(texts, found, strict=True))
        assert len(made._idle) <= MAX_PROCESSES


async def test_a_chat_of_megabytes_is_rendered() -> None:
    text = "word <|im_end|> < " * 200_000
    async with processes(CHATML) as made, asyncio.timeout(BUSY_MACHINE_S):
        found = await made.render(request(text, allow_special_tokens=True))
        assert found.text.count("word") == 200_000
        assert len(text.encode()) < MAX_MEMORY_BYTES


async def test_the_processes_end_with_their_worker() -> None:
    async with processes(CHATML) as made:
        await made.render(request())
        pid = pid_of(made)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
