"""PEFT's mixed batch (`adapter_names=`), eager as it must be."""

import time

import peft
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tools.bench.peers.protocol import PeerSettings, PromptRow, TimedAnswer, serve


class PeftMixed:
    """Every adapter loaded; rows name theirs."""

    def __init__(self, settings: PeerSettings) -> None:
        torch.set_num_threads(settings.threads)
        base = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.bfloat16)
        first, *more = settings.adapters
        self._model = PeftModel.from_pretrained(base, first, adapter_name="a0", autocast_adapter_dtype=False)
        for number, folder in enumerate(more, 1):
            self._model.load_adapter(folder, adapter_name=f"a{number}", autocast_adapter_dtype=False)
        self._model.eval()

    def versions(self) -> dict[str, str]:
        """Versions of torch and PEFT."""
        return {"peft": peft.__version__, "torch": torch.__version__}

    @torch.no_grad()
    def generate(self, rows: list[PromptRow], num_tokens: int) -> TimedAnswer:
        """Rows have prompts of one length."""
        began_s = time.perf_counter()
        names = ["__base__" if row.adapter is None else f"a{row.adapter}" for row in rows]
        ids_RT, cache = torch.tensor([row.prompt for row in rows]), None
        times_s, chosen = [], []
        for _ in range(num_tokens):
            output = self._model(input_ids=ids_RT, past_key_values=cache, use_cache=True, adapter_names=names)
            cache, ids_RT = output.past_key_values, output.logits[:, -1:].argmax(-1)
            times_s.append(time.perf_counter() - began_s)
            chosen.append(ids_RT)
        return TimedAnswer([times_s] * len(rows), torch.cat(chosen, 1).tolist())


if __name__ == "__main__":
    serve(PeftMixed)
