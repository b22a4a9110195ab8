"""Answers as they stream to a terminal or a pipe."""

import sys
from collections.abc import Iterator

from hotslot.cli.output import print_event, say
from hotslot.cli.rendering import human_duration, short_digest
from hotslot.contract.generation import Chunk, Finished, GenerationEvent, Started, TokenAlternative, TokenLogprob


def stream_answer(events: Iterator[GenerationEvent], *, as_json: bool) -> str:
    """Print a generation as it comes, and on a terminal what served it; returns the first choice's text."""
    printer = AnswerPrinter()
    try:
        for event in events:
            if as_json:
                print_event(type(event).__name__.lower(), event)
            printer.hear(event, silent=as_json)
    finally:
        printer.end_line()  # Whatever is said next, an error too, has a line of its own.
    return "".join(printer.pieces.get(0, ()))


class AnswerPrinter:
    """The first choice as it comes, and every other one below it once it is whole."""

    def __init__(self) -> None:
        self.pieces: dict[int, list[str]] = {}
        self._started: Started | None = None
        self._is_line_open = False
        self._is_first_whole = False
        self._waiting: list[Finished] = []

    def hear(self, event: GenerationEvent, *, silent: bool) -> None:
        """Take the next event, and print it unless `silent`."""
        match event:
            case Started():
                self._started = event
            case Chunk():
                self.pieces.setdefault(event.choice, []).append(event.text)
                if event.choice == 0 and not silent:
                    self._print(event)
            case Finished():
                if not silent:
                    self._finish(event)

    def end_line(self) -> None:
        """End a line that is half printed."""
        if self._is_line_open:
            self._is_line_open = False
            print(flush=True)

    def _print(self, chunk: Chunk) -> None:
        if not chunk.logprobs:
            print(chunk.text, end="", flush=True)
            self._is_line_open = True
            return
        print(f"{chunk.text!r}")
        for token in chunk.logprobs:
            others = "  ".join(f"{_named(it)}: {it.logprob:.3f}" for it in token.alternatives)
            print(f"  token {_named(token)}: {token.logprob:.3f}" + (f"  ({others})" if others else ""), flush=True)

    def _finish(self, finished: Finished) -> None:
        if finished.choice and not self._is_first_whole:
            self._waiting.append(finished)
            return
        text = "".join(self.pieces.get(finished.choice, ())) if finished.choice else ""
        self._is_line_open = False
        print(text, flush=True)
        if self._started is not None and sys.stderr.isatty():
            say(served_line(self._started, finished))
        if not finished.choice:
            self._is_first_whole = True
            for other in self._waiting:
                self._finish(other)


def served_line(started: Started, finished: Finished) -> str:
    """Line below an answer: the worker and the versions that served it, and the time it took."""
    who = " + ".join(
        f"{a.reference.partition('@')[0]}@{short_digest(a.digest)}" + (f" × {a.weight:g}" if a.weight != 1 else "")
        for a in started.adapters
    )
    usage, timings = finished.usage, finished.timings
    decode_s = timings.total_s - timings.time_to_first_token_s
    rate = f", {(usage.completion_tokens - 1) / decode_s:.0f} tokens/s" if decode_s > 0 else ""
    load = f", adapter load {human_duration(timings.adapter_load_s)}" if timings.adapter_load_s else ""
    return (
        f"— {who or 'base model'} on {started.worker_id}: {usage.completion_tokens} tokens ({finished.reason}), "
        f"first after {human_duration(timings.time_to_first_token_s)}{load}{rate}"
    )


def _named(token: TokenLogprob | TokenAlternative) -> str:
    """A token by its id, and by its text where the worker tells it."""
    return f"{token.token_id} {token.text!r}" if token.text else f"{token.token_id}"
