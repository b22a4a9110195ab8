"""Exactness on a device: SmolLM2's answers, base and adapters in one batch, against PEFT's committed ones."""

from typing import Any

from deploy.demo.reference import BASE_NAME, NUM_GREEDY_TOKENS, read_reference
from hotslot.contract.generation import Sampling
from store_service.admission.admit import Checkpoint, admit
from store_service.admission.settings import AdmissionLimits
from tools.bench.gpu_model import ADAPTERS_DIR
from worker_service.demo_model import BASE_MODEL, cached_model
from worker_service.engine.core import EngineCore
from worker_service.engine.messages import AdapterUse, SequenceId, StopRules, Submit, TokenReady
from worker_service.model.loading import load_model
from worker_service.model.options import LoadedModel, ModelOptions

MAX_RANK = 32


def smollm2_exactness(device: str, **options: Any) -> dict[str, Any]:
    """Answers that are PEFT's to the token, of all; raises FileNotFoundError where the model is not on this machine."""
    folder = cached_model()
    if folder is None:
        raise FileNotFoundError("SmolLM2 is not on this machine; `make model` fetches it")
    loaded = load_model(
        ModelOptions(
            model=str(folder),
            model_name=BASE_MODEL,
            dtype="float32",
            device=device,
            slot_rank=8,
            max_rank=MAX_RANK,
            kv_tokens=4096,
            max_sequence_tokens=512,
            token_buckets=(1, 8, 64),
            runs_ahead=True,
            **options,
        )
    )
    equal, answers = _compared(loaded)
    counts = loaded.runner.graphs
    return {
        "answers": answers, "equal_to_peft": equal, "captured_steps": counts.num_replayed,
        "recompiles": loaded.runner.recompiles,
    }  # fmt: skip


def _compared(loaded: LoadedModel) -> tuple[int, int]:
    core = EngineCore(loaded.runner, loaded.limits, lambda: 0.0)
    expected: dict[SequenceId, list[int]] = {}
    for number, (name, prompts) in enumerate(read_reference()["models"].items()):
        uses: tuple[AdapterUse, ...] = ()
        if name != BASE_NAME:
            blob = bytearray()
            files = {path.name: path for path in (ADAPTERS_DIR / name).iterdir()}
            manifest = admit(Checkpoint(files), loaded.spec, AdmissionLimits(), blob.extend).require()
            uses = (AdapterUse(loaded.decoder.decode(manifest, blob), 1.0),)
        sequence_id = SequenceId(number)
        expected[sequence_id] = prompts[0]["greedy_ids"][:NUM_GREEDY_TOKENS]
        stop = StopRules(NUM_GREEDY_TOKENS)
        core.handle(Submit(sequence_id, tuple(prompts[0]["prompt_ids"]), uses, Sampling(), stop, arrival_s=0.0))
    found: dict[SequenceId, list[int]] = {sequence_id: [] for sequence_id in expected}
    while not core.idle:
        for event in core.turn():
            if isinstance(event, TokenReady):
                found[event.sequence_id].append(event.token.token_id)
    return sum(found[sequence_id] == answer for sequence_id, answer in expected.items()), len(expected)
