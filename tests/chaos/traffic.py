"""Clients that never stop asking, and what became of every request."""

import asyncio
import itertools
import random
import time
from collections import Counter
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field

from hotslot import AdapterSelection, Chunk, GenerationRequest, HotslotClient, Started, Stop
from hotslot.errors import HotslotError, UnavailableError
from tests.support.echo_model import voice
from tests.support.tag_ledger import TagLedger

DEADLINE_S = 60.0
LOST_AFTER_S = DEADLINE_S + 30.0
LONG_TOKENS = 60
LONG_SHARE = 0.3
ZIPF_EXPONENT = 1.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that did not get its whole answer."""

    name: str
    error: HotslotError
    failed_s: float
    begun: bool
    """Whether tokens had come."""

    @property
    def kind(self) -> str:
        when = "after" if self.begun else "before"
        return f"{type(self.error).__name__} {when} the first token"

    def was_cut(self, lost_s: list[tuple[float, float]], within_s: float) -> bool:
        """Whether it is the stream of a worker that was lost just then: what no client may repeat by itself."""
        just_lost = any(from_s <= self.failed_s <= until_s + within_s for from_s, until_s in lost_s)
        return self.begun and isinstance(self.error, UnavailableError) and just_lost


@dataclass
class Traffic:
    """Counts and figures; times are `time.monotonic()`."""

    ledger: TagLedger
    asked: int = 0
    answered: int = 0
    failures: list[Failure] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Tokens of another adapter than the answer names, or answers of a version that the name did not stand for."""
    latencies_s: list[float] = field(default_factory=list)
    staleness_s: list[float] = field(default_factory=list)
    served_by: Counter[str] = field(default_factory=Counter)
    lost: int = 0

    @property
    def ended(self) -> int:
        return self.answered + len(self.failures)

    async def ask(self, client: HotslotClient, name: str, *, long: bool) -> None:
        """One request, to its end, whatever that is."""
        self.asked += 1
        prompt, stop = ("endless", Stop(max_tokens=LONG_TOKENS)) if long else ("hello", Stop())
        request = GenerationRequest(prompt, (AdapterSelection(name),), stop=stop)
        asked_s = time.monotonic()
        started: Started | None = None
        token_ids: list[int] = []
        text = ""
        try:
            async with (
                asyncio.timeout(LOST_AFTER_S),
                aclosing(client.generate(request, timeout_s=DEADLINE_S)) as events,
            ):
                async for event in events:
                    match event:
                        case Started():
                            started = event
                        case Chunk():
                            text += event.text
                            token_ids += event.token_ids
        except HotslotError as exc:
            self.failures.append(Failure(name, exc, time.monotonic(), started is not None))
        except TimeoutError:
            self.lost += 1
            return
        else:
            self.answered += 1
            self.latencies_s.append(time.monotonic() - asked_s)
            self._check_length(name, text, long=long)
        if started is not None:
            self._check(name, started, text, token_ids, asked_s)

    def _check(self, name: str, started: Started, text: str, token_ids: list[int], asked_s: float) -> None:
        self.served_by[started.worker_id] += 1
        digest = started.adapters[0].digest
        spoken = (voice(digest) * (LONG_TOKENS // len(voice(digest)) + 1))[: len(text)]
        tokens = bytes(token_id for token_id in token_ids if token_id < 256).decode()
        if not text == tokens == spoken:
            self.wrong.append(f"{name}: {digest} was named, and {text!r} said with the tokens of {tokens!r}")
        self.staleness_s.append(self.ledger.staleness_s(name, digest, asked_s, time.monotonic()))

    def _check_length(self, name: str, text: str, *, long: bool) -> None:
        expected = LONG_TOKENS if long else len(voice("sha256:" + "0" * 64))
        if len(text) != expected:
            self.wrong.append(f"{name}: {text!r} is not {expected} tokens long")


@dataclass(frozen=True, slots=True)
class Load:
    """How much is asked for."""

    names: list[str]
    """The most popular first."""
    clients: int
    pause_s: float
    """Mean time between an answer and the client's next request."""
    seed: int = 7


async def run_clients(
    traffic: Traffic, load: Load, store_endpoint: str, service_endpoint: str, until: asyncio.Event
) -> None:
    """Ask until told to stop, then let what was asked end."""
    shares = list(itertools.accumulate(1 / rank**ZIPF_EXPONENT for rank in range(1, len(load.names) + 1)))

    async def one(number: int) -> None:
        chance = random.Random(load.seed * 1_000 + number)
        async with AsyncExitStack() as stack:
            client = HotslotClient(store_endpoint, service_endpoint, patience_s=DEADLINE_S)
            await stack.enter_async_context(client)
            while not until.is_set():
                (name,) = chance.choices(load.names, cum_weights=shares)
                await traffic.ask(client, name, long=chance.random() < LONG_SHARE)
                try:
                    async with asyncio.timeout(chance.expovariate(1 / load.pause_s)):
                        await until.wait()
                except TimeoutError:
                    continue

    async with asyncio.TaskGroup() as group:
        for number in range(load.clients):
            group.create_task(one(number))
