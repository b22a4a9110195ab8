"""Models with random weights for the GPU report, and adapters for all of their linears."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models

from hotslot.ids import Digest
from worker_service.model.options import LoadedModel, ModelOptions
from worker_service.model.weights import HostAdapter, HostModule


@dataclass(frozen=True)
class GpuShape:
    """Sizes of a model and of what is measured on it."""

    name: str
    config: dict[str, Any]
    rows: int
    """Rows of the wide steps, each with an adapter of its own."""
    rank: int
    context: int
    """Keys of each row before the first measured step."""
    steps: int
    prompt: int
    buckets: tuple[int, ...]
    dtype: str = "bfloat16"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return int(self.config["num_hidden_layers"])

    def model_options(self, folder: Path, device: str) -> ModelOptions:
        """Options of a worker that serves it."""
        tokens = self.context + 2 * self.steps
        return ModelOptions(
            model=str(folder), model_name=self.name, dtype=self.dtype, device=device,
            num_slots=self.rows, slot_rank=self.rank, max_rank=self.rank, max_sequences=self.rows,
            kv_tokens=self.rows * -(-tokens // 256) * 256, max_sequence_tokens=max(self.prompt, tokens),
            token_buckets=self.buckets, runs_ahead=True, **self.options,
        )  # fmt: skip


ADAPTERS_DIR = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "adapters"
"""Adapters of SmolLM2 that are shipped."""
LLAMA_8B = GpuShape(
    "shape of Llama-3.1-8B, random weights",
    {
        "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
        "rope_theta": 500_000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    },
    rows=32, rank=16, context=256, steps=64, prompt=512, buckets=(1, 32, 512),
)  # fmt: skip
TINY = GpuShape(
    "tiny model, random weights",
    {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    },
    rows=4, rank=4, context=16, steps=6, prompt=16, buckets=(1, 4, 16), dtype="float32",
    options={"compile": False, "cpu_kernels": False, "num_threads": 1, "block_tokens": 16},
)  # fmt: skip


def make_checkpoint(shape: GpuShape, folder: Path, device: torch.device) -> Path:
    """A folder as the hub has them, with weights made on the device."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**shape.config, bos_token_id=1, eos_token_id=2)
    with device:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, shape.dtype))
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"t{index}": index for index in range(64)}, unk_token="t0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def random_adapter(loaded: LoadedModel, rank: int) -> HostAdapter:
    """An adapter for every linear with slots, in one stretch of memory, as adapters from a store are."""
    linears = loaded.runner.slot_linears
    num_elements = sum(rank * (linear.in_features + linear.out_features) for linear in linears.values())
    dtype = next(iter(linears.values())).a_CI.dtype
    stretch_N = torch.empty(num_elements, dtype=dtype, pin_memory=torch.cuda.is_available())
    stretch_N.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(1))
    modules, end = {}, 0
    for path, linear in linears.items():
        views = []
        for features in (linear.in_features, linear.out_features):
            begin, end = end, end + rank * features
            views.append(stretch_N[begin:end].view(rank, features))
        modules[path] = HostModule(views[0], views[1], 1.0)
    return HostAdapter(Digest(f"sha256:{1:064x}"), rank, stretch_N.nbytes, modules, stretch_N)


def weight_bytes(loaded: LoadedModel) -> int:
    """Bytes of weights that every step reads: all but the embedding's, of which it reads its tokens' rows alone."""
    steps = loaded.runner.device_steps
    assert steps is not None
    embedding: torch.Tensor = steps.model.get_input_embeddings().weight
    is_tied = bool(steps.model.config.tie_word_embeddings)
    # Linears of a group are views of one stretch.
    seen: dict[int, int] = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in steps.model.parameters()
    }
    return sum(seen.values()) - (0 if is_tied else int(embedding.nbytes))
