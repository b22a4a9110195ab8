"""A model without torch whose answers say which adapters made them: what is in its slots is what it speaks.

The text is the mix of the adapters that are on, as `<digest prefix>*<weight>`, or `base`; then it ends. After a
prompt that begins with `endless` it goes on for ever. Tokens are the bytes of UTF-8, and one end-of-sequence token.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from hotslot.contract.generation import TokenAlternative
from hotslot.errors import InvalidAdapterError, RankTooLargeError, Violation
from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind
from hotslot.formats.manifest import Manifest
from hotslot.ids import Digest
from tests.support.steps_at_once import StepsAtOnce
from worker_service.engine.graph_counts import NO_GRAPHS, GraphCounts
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import AdapterWeights, Computed, SampledToken, Segment
from worker_service.pinned_arena import PinnedArena

EOS = 256
VOCAB_SIZE = 257
UNHURRIED_STEP_S = 0.05
"""Pace at which an endless answer takes 25 seconds: it still runs when a test on a busy machine has come to look."""
PAD = "<pad>"
"""Text that the tokenizer takes for one token, of which the model knows nothing: its id is VOCAB_SIZE."""
IN_FEATURES, OUT_FEATURES = 16, 12
CHAT_TEMPLATE = """
{%- if messages[0].role == "assistant" %}
    {{- raise_exception("the conversation must not begin with the assistant") }}
{%- endif %}
{%- for turn in messages %}{{ "<" + turn.role + ">" + turn.content }}{% endfor %}
{%- if add_generation_prompt %}{{ "<assistant>" }}{% endif %}
"""
MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")


def voice(digest: str, weight: float = 1.0) -> str:
    """What the model says with one adapter on."""
    return f"{digest[7:15]}*{weight:g}"


def _open_gate() -> threading.Event:
    gate = threading.Event()
    gate.set()
    return gate


@dataclass(frozen=True)
class EchoWeights:
    """Host memory of the model that needs none."""

    digest: Digest
    max_rank: int
    size_bytes: int


@dataclass
class EchoDecoder:
    """Believes every blob; counts them."""

    decoded: list[Digest] = field(default_factory=list)
    refuse: set[Digest] = field(default_factory=set)
    gate: threading.Event = field(default_factory=_open_gate)
    """While cleared, decoding hangs."""
    decode_s: float = 0.0
    entered: int = 0
    max_rank: int = 16

    def check(self, manifest: Manifest) -> None:
        if manifest.max_rank > self.max_rank:
            found, expected = f"rank {manifest.max_rank}", f"at most {self.max_rank}"
            path = manifest.modules[0].path
            raise RankTooLargeError([Violation.of("RANK_TOO_LARGE", path, found, expected, "raise HOTSLOT_MAX_RANK")])

    def decode(self, manifest: Manifest, blob: bytes | bytearray | memoryview) -> EchoWeights:
        self.entered += 1
        self.gate.wait()
        time.sleep(self.decode_s)
        if manifest.digest in self.refuse:
            raise InvalidAdapterError([Violation("BAD", "tensor", "junk", "numbers", "tensor: it is junk")])
        self.decoded.append(manifest.digest)
        return EchoWeights(manifest.digest, manifest.max_rank, len(blob))


class EchoTokenizer:
    """Bytes as tokens."""

    chat_template: object = CHAT_TEMPLATE
    added_tokens_decoder: Mapping[int, object] = MappingProxyType({})
    special_tokens_map: Mapping[str, object] = MappingProxyType({})
    all_special_ids: Sequence[int] = (EOS,)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        first, *others = (list(part.encode()) for part in text.split(PAD))
        return [*first, *(token_id for part in others for token_id in (VOCAB_SIZE, *part))]

    def decode(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool = True, clean_up_tokenization_spaces: bool = False
    ) -> str:
        known = (
            PAD.encode() if token_id == VOCAB_SIZE else bytes([token_id]) for token_id in token_ids if token_id != EOS
        )
        return b"".join(known).decode(errors="replace")


@dataclass
class EchoRunner(StepsAtOnce):
    """Computes nothing; `step_s` paces it, `copy_s` each slot's copy; `gate`, while cleared, holds it before a step."""

    num_slots: int
    step_s: float = 0.0
    copy_s: float = 0.0
    recompiles: int = 0
    graphs: GraphCounts = NO_GRAPHS
    gate: threading.Event = field(default_factory=_open_gate)
    slots: dict[int, AdapterWeights] = field(default_factory=dict)

    def write_slots(self, slots: Sequence[int], weights: AdapterWeights) -> Iterator[None]:
        for slot in slots:
            time.sleep(self.copy_s)
            self.slots[slot] = weights
            yield

    def run(self, segments: Sequence[Segment]) -> list[Computed]:
        self.gate.wait()
        time.sleep(self.step_s)
        return [Computed(self._next(segment), self._scores(segment)) for segment in segments]

    @staticmethod
    def _scores(segment: Segment) -> tuple[SampledToken, ...]:
        """A token's log-probability is its number, negative."""
        scoring = segment.scoring
        if scoring is None:
            return ()
        alternatives = tuple(TokenAlternative(rank, -1.0 - rank) for rank in range(scoring.num_alternatives))
        return tuple(SampledToken(token_id, -float(token_id), alternatives) for token_id in scoring.token_ids)

    def _next(self, segment: Segment) -> SampledToken | None:
        if segment.sampling is None:
            return None
        mix = {self.slots[slot].digest: weight for slot, weight in segment.gates}
        text = "+".join(sorted(voice(digest, weight) for digest, weight in mix.items())) or "base"
        spoken = text.encode()
        position = len(segment.history) - segment.num_prompt_tokens
        prompt = bytes(segment.history[: min(7, segment.num_prompt_tokens)])
        if prompt.startswith(b"endless"):
            token_id = spoken[position % len(spoken)]
        else:
            token_id = spoken[position] if position < len(spoken) else EOS
        if token_id in segment.banned_token_ids:
            token_id = ord(".")
        alternatives = tuple(TokenAlternative(rank, -1.0 - rank) for rank in range(segment.logprobs.num_alternatives))
        return SampledToken(token_id, -0.5 if segment.logprobs.enabled else None, alternatives)


@dataclass(frozen=True)
class EchoModel:
    """Everything that a worker needs of a model."""

    limits: EngineLimits
    runner: EchoRunner
    decoder: EchoDecoder = field(default_factory=EchoDecoder)
    tokenizer: EchoTokenizer = field(default_factory=EchoTokenizer)
    spec: BaseSpec = field(
        default_factory=lambda: BaseSpec(
            "test/echo",
            "echo",
            "00" * 32,
            tuple(BaseModule(path, ModuleKind.LINEAR, IN_FEATURES, OUT_FEATURES) for path in MODULES),
        )
    )
    dtype: str = "float32"
    vocab_size: int = VOCAB_SIZE
    eos_token_ids: tuple[int, ...] = (EOS,)
    target_paths: tuple[str, ...] = MODULES
    max_rank: int = 16
    buckets: tuple[()] = ()
    startup_stages: tuple[()] = ()
    arena: PinnedArena | None = None


def echo_model(*, num_slots: int = 4, max_running: int = 4, max_waiting: int = 64, step_s: float = 0.0) -> EchoModel:
    """A model with small limits: 8 ranks a slot, 512 tokens a sequence."""
    limits = EngineLimits(
        num_slots=num_slots,
        slot_rank=8,
        max_running=max_running,
        max_waiting=max_waiting,
        num_blocks=4 * 32,
        block_tokens=16,
        max_step_tokens=64,
        max_sequence_tokens=512,
    )
    return EchoModel(limits, EchoRunner(num_slots, step_s))
