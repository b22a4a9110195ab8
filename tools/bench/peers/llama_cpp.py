"""llama.cpp through `xllamacpp`: its own server, asked over HTTP. Standard library and xllamacpp alone."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import xllamacpp

from tools.bench.peers.protocol import PeerSettings, PromptRow, TimedAnswer, serve

STARTED_WITHIN_S = 60.0


class LlamaCpp:
    """As many of the server's slots as rows; every adapter loaded, and turned on by each request for itself."""

    def __init__(self, settings: PeerSettings) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = settings.gguf
        params.n_parallel = settings.max_rows
        params.n_ctx = settings.max_rows * settings.max_tokens
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads
        params.cache_ram_mib = 0
        params.cache_idle_slots = False
        params.fit_params = False
        params.lora_init_without_apply = True
        loras = []
        for file in settings.adapters:
            lora = xllamacpp.CommonAdapterLoraInfo()
            lora.path, lora.scale = str(Path(file) / "adapter.gguf"), 1.0
            loras.append(lora)
        params.lora_adapters = loras
        self._num_adapters = len(loras)
        self._server = xllamacpp.Server(params)
        host, _, port = self._server.listening_address.rpartition("//")[2].rpartition(":")
        self._address = host, int(port.rstrip("/"))

    def versions(self) -> dict[str, str]:
        """Version of xllamacpp, and the instruction sets that it was built to use."""
        return {"xllamacpp": xllamacpp.__version__, "llama.cpp": str(xllamacpp.get_system_info())}

    def generate(self, rows: list[PromptRow], num_tokens: int) -> TimedAnswer:
        """One request a row, all at once, each in the server's slot of its own."""
        return asyncio.run(self._generate(rows, num_tokens))

    async def _generate(self, rows: list[PromptRow], num_tokens: int) -> TimedAnswer:
        began_s = time.perf_counter()
        bodies = [self._body(slot, row, num_tokens) for slot, row in enumerate(rows)]
        answers = await asyncio.gather(*(self._ask(body, began_s) for body in bodies))
        return TimedAnswer([times_s for times_s, _ in answers], [tokens for _, tokens in answers])

    def _body(self, slot: int, row: PromptRow, num_tokens: int) -> bytes:
        lora = [{"id": n, "scale": 1.0 if n == row.adapter else 0.0} for n in range(self._num_adapters)]
        request: dict[str, Any] = {
            "prompt": row.prompt, "n_predict": num_tokens, "id_slot": slot, "stream": True, "cache_prompt": True,
            "temperature": 0.0, "top_k": 1, "samplers": ["top_k"], "ignore_eos": True, "return_tokens": True,
        }  # fmt: skip
        if self._num_adapters:
            request["lora"] = lora
        return json.dumps(request).encode()

    async def _ask(self, body: bytes, began_s: float) -> tuple[list[float], list[int]]:
        reader, writer = await asyncio.open_connection(*self._address)
        head = f"POST /completion HTTP/1.1\r\nHost: {self._address[0]}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        events: list[tuple[float, bytes]] = []
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"llama.cpp answered {status!r}: {await reader.read()!r}")
        async for line in reader:
            events.append((time.perf_counter() - began_s, line))  # noqa: PERF401 -- a comprehension hides the clock
        writer.close()
        # Decoded when nothing is being timed any more.
        times_s: list[float] = []
        tokens: list[int] = []
        for at_s, data in events:
            found = json.loads(data[6:]).get("tokens") or [] if data.startswith(b"data: ") else []
            times_s += [at_s] * len(found)
            tokens += found
        return times_s, tokens


if __name__ == "__main__":
    serve(LlamaCpp)
