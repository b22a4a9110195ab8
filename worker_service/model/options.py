"""Options of a worker's model, and the model that comes of them."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from hotslot.contract.control import CompiledBucket, StartupStage
from hotslot.formats.base_spec import BaseSpec
from worker_service.engine.limits import EngineLimits
from worker_service.model.runner import TorchRunner
from worker_service.model.weights import SlotWeightsDecoder
from worker_service.pinned_arena import PinnedArena


@dataclass(frozen=True)
class ModelOptions:
    """Options of loading and compiling a model."""

    model: str
    """A folder, or `org/name` on the Hugging Face Hub."""
    model_name: str
    """Public name, under which adapters refer to it; empty means what `model` says."""
    dtype: str = "bfloat16"
    weights: str = "full"
    """`full` keeps weights in `dtype`; `int8` keeps those that decoding reads in 8 bits, on CPU with our kernels."""
    device: str = "cpu"
    num_slots: int = 0
    """Slots; 0 is by device, as are rows, tokens and buckets below (`hotslot/device_sizes.py`)."""
    slot_rank: int = 16
    max_rank: int = 64
    max_sequences: int = 0
    """Rows; 0 is by device, and no more than the largest bucket and the KV cache hold."""
    max_waiting: int = 256
    kv_tokens: int = 0
    """Tokens that the KV cache holds over all sequences; 0 is by device."""
    block_tokens: int = 0
    """Tokens of one block of the KV cache; 0 means the fewest that attention takes (`loading.block_tokens`)."""
    max_sequence_tokens: int = 0
    """0 means the model's own context length, as far as the KV cache holds it."""
    token_buckets: tuple[int, ...] = ()
    """Numbers of tokens of a step to compile for, ascending; the last is the most that one step computes. Empty is by
    device."""
    target_modules: tuple[str, ...] = ()
    """Last names of the modules that get slots (targets.py); empty means every linear that the loaded layers have."""
    cache_dir: Path | None = None
    """Folder of compiled code between starts; None means the compiler's own default."""
    compile: bool = True
    """False runs the same code uncompiled, for short-lived tests."""
    cpu_kernels: bool = True
    """True if few tokens on CPU are computed by our own kernels; False leaves it all to torch."""
    cuda_kernels: bool = True
    """True if what adapters add on CUDA is computed by our own kernels where Triton is; False leaves it to torch."""
    cuda_graphs: bool = True
    """True if steps on CUDA are captured once and replayed; False launches each anew."""
    runs_ahead: bool = False
    """True if steps are planned, fed and collected on a CPU as they are on CUDA, for tests; it is slower there."""
    varlen_attention: bool = True
    """True if CUDA attends with torch's paged kernels where it can; False leaves it to the portable operators."""
    pinned_bytes: int = 0
    """Host memory that CUDA copies adapters from beside its steps; what finds no room there is copied more slowly."""
    num_threads: int = 0
    """Threads of one operation on CPU; 0 means one for each core but one, which is the front's."""


@dataclass(frozen=True)
class LoadedModel:
    """A model that is warmed up, checked against plain transformers, and ready to serve."""

    runner: TorchRunner
    limits: EngineLimits
    decoder: SlotWeightsDecoder
    tokenizer: PreTrainedTokenizerBase
    spec: BaseSpec
    model_type: str
    dtype: str
    """Element type that it computes in, and the form of its weights where that is another one."""
    vocab_size: int
    """Tokens that the model can read: rows of its embedding."""
    eos_token_ids: tuple[int, ...]
    target_paths: tuple[str, ...]
    max_rank: int
    buckets: tuple[CompiledBucket, ...]
    startup_stages: tuple[StartupStage, ...]
    arena: PinnedArena | None = None
    """Memory that the decoder writes adapters to, where a device copies from it."""
