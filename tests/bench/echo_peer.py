"""A peer that answers each prompt with its first token, and prints while it does."""

import sys
import time

from tools.bench.peers.protocol import PeerSettings, PromptRow, TimedAnswer, serve


class EchoPeer:
    def __init__(self, settings: PeerSettings) -> None:
        self._num_adapters = int(settings.options["after"])

    def versions(self) -> dict[str, str]:
        return {"echo": "1"}

    def generate(self, rows: list[PromptRow], num_tokens: int) -> TimedAnswer:
        sys.stdout.write("printed by a library\n")
        for row in rows:
            if row.adapter is not None and row.adapter >= self._num_adapters:
                raise LookupError(f"no adapter {row.adapter}")
        if num_tokens > 1000:
            time.sleep(3600)
        times_s = [float(number) for number in range(num_tokens)]
        return TimedAnswer([times_s for _ in rows], [[row.prompt[0]] * num_tokens for row in rows])


if __name__ == "__main__":
    serve(EchoPeer)
