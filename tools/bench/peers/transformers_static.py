"""transformers, compiled, with a static cache: the base alone, as the library's own guide has it."""

import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, StaticCache

from tools.bench.peers.protocol import PeerSettings, PromptRow, TimedAnswer, serve

CONTEXT_MULTIPLE = 128
"""Caches come in few lengths, since each is compiled for."""


class TransformersStatic:
    """The forward pass compiled for one token a row; prompts run uncompiled."""

    def __init__(self, settings: PeerSettings) -> None:
        torch.set_num_threads(settings.threads)
        self._model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.bfloat16)
        self._step: Any = torch.compile(self._model.forward, dynamic=False)
        self._caches: dict[tuple[int, int], StaticCache] = {}

    def versions(self) -> dict[str, str]:
        """Versions of torch and transformers."""
        return {"transformers": transformers.__version__, "torch": torch.__version__}

    @torch.no_grad()
    def generate(self, rows: list[PromptRow], num_tokens: int) -> TimedAnswer:
        """Rows have prompts of one length."""
        began_s = time.perf_counter()
        ids_RT = torch.tensor([row.prompt for row in rows])
        num_rows, num_prompt = ids_RT.shape
        length = -(-(num_prompt + num_tokens) // CONTEXT_MULTIPLE) * CONTEXT_MULTIPLE
        if (num_rows, length) not in self._caches:
            make: Any = StaticCache
            self._caches[num_rows, length] = make(self._model.config, max_cache_len=length)
        cache = self._caches[num_rows, length]
        cache.reset()
        logits = self._model(input_ids=ids_RT, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        tokens_R1 = logits[:, -1:].argmax(-1)
        times_s, chosen = [time.perf_counter() - began_s], [tokens_R1]
        for number in range(num_tokens - 1):
            positions_R1 = torch.full((num_rows, 1), num_prompt + number)
            logits = self._step(
                input_ids=tokens_R1, position_ids=positions_R1, past_key_values=cache, use_cache=True
            ).logits
            tokens_R1 = logits[:, -1:].argmax(-1)
            times_s.append(time.perf_counter() - began_s)
            chosen.append(tokens_R1)
        return TimedAnswer([times_s] * num_rows, torch.cat(chosen, 1).tolist())


if __name__ == "__main__":
    serve(TransformersStatic)
