"""Biases on B and adapters on embedding and head answer as freshly loaded PEFT, alone, mixed and after swaps."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hotslot.contract.generation import Sampling
from hotslot.errors import InvalidRequestError, RankTooLargeError, UnsupportedAdapterError
from hotslot.formats.base_model import spec_from_folder
from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind
from tests.model.tiny_worker import admitted, apart
from tests.support.tiny_models import ARCHITECTURES, Architecture, PeftOracle, make_adapter, make_model
from worker_service.engine.messages import Scoring, Segment
from worker_service.model.loading import load_model
from worker_service.model.options import LoadedModel, ModelOptions
from worker_service.model.slot_embedding import SlotEmbedding
from worker_service.model.slot_linear import SlotLinear
from worker_service.model.targets import choose_targets
from worker_service.model.weights import HostAdapter

MODELS = {
    "llama": ("llama", False),
    "llama, tied": ("llama", True),
    "qwen3, tied": ("qwen3", True),
    "gemma3, tied": ("gemma3", True),
    "gpt_neox": ("gpt_neox", False),
    "gpt_neox, tied": ("gpt_neox", True),
}
TOLERANCE = 1e-3
SLOT_RANK = 4
Row = tuple[tuple[int, ...], tuple[tuple[int, float], ...]]
"""A prompt, and the gates that are on for it."""
Rows = Mapping[str, Row]


def adapters_of(found: Architecture, *, is_tied: bool) -> dict[str, dict[str, Any]]:
    """Every kind of target, in ranks that fill slots, leave some of them over, or spill for a bias alone."""
    kinds: dict[str, dict[str, Any]] = {
        "plain": {"target_modules": [found.attention], "r": 6, "lora_alpha": 60},
        "biases": {"target_modules": [found.attention, found.mlp], "r": 4, "lora_alpha": 20, "lora_bias": True},
        "embedding": {"target_modules": [found.embedding, found.attention], "r": 4, "lora_alpha": 1},
        "head": {"target_modules": ["lm_head", found.mlp], "r": 3, "lora_alpha": 2, "lora_bias": True},
        "ends": {
            "target_modules": [found.embedding, "lm_head"], "r": 4, "lora_alpha": 1, "use_rslora": True,
            "rank_pattern": {found.embedding: 2},
        },
    }  # fmt: skip
    if is_tied and found.embedding == "embed_tokens":
        kinds["as one"] = {"target_modules": ["lm_head"], "r": 4, "lora_alpha": 0.1, "ensure_weight_tying": True}
    return kinds


@dataclass
class Bench:
    """A worker's model, and the same adapters for it and for PEFT."""

    base: Path
    loaded: LoadedModel
    adapters: dict[str, HostAdapter]
    oracles: dict[str, PeftOracle]

    def write(self, adapter: HostAdapter, first_slot: int) -> list[int]:
        """Overwrite as many slots as the adapter takes; returns those."""
        slots = list(range(first_slot, first_slot - (-adapter.max_rank // SLOT_RANK)))
        for _ in self.loaded.runner.write_slots(slots, adapter):
            pass
        return slots

    def rows(self) -> Rows:
        """One of each adapter and two of the base, of different lengths."""
        rows: dict[str, Row] = {"base": (prompt(7), ())}
        first_slot = 0
        for index, (name, adapter) in enumerate(self.adapters.items()):
            slots = self.write(adapter, first_slot)
            rows[name] = (prompt(index), tuple((slot, 1.0) for slot in slots))
            first_slot += len(slots)
        return {**rows, "base again": (prompt(8), ())}

    def logits(self, rows: Rows) -> dict[str, torch.Tensor]:
        """After the last token of each prompt, which is computed in a second step, all rows in one batch."""
        runner = self.loaded.runner
        segments = [
            (Segment(ids[:-1], 0, (row,), gates, Sampling()),
             Segment(ids[-1:], len(ids) - 1, (row,), gates, Sampling()))
            for row, (ids, gates) in enumerate(rows.values())
        ]  # fmt: skip
        runner.logits([first for first, _ in segments])
        return dict(zip(rows, runner.logits([second for _, second in segments]).clone(), strict=False))


def prompt(number: int) -> tuple[int, ...]:
    """Of 3 to 6 tokens."""
    generator = torch.Generator().manual_seed(number)
    return tuple(torch.randint(3, 64, (3 + number % 4,), generator=generator).tolist())


def options(base: Path, **changes: Any) -> ModelOptions:
    names = ("all-linear", "embed_tokens", "embed_in", "lm_head", "embed_out")
    known = {module.name for module in spec_from_folder(base, "tiny").targets}
    return ModelOptions(
        model=str(base), model_name="tiny", dtype="float32", num_slots=8, slot_rank=SLOT_RANK, max_rank=8,
        max_sequences=8, kv_tokens=256, max_sequence_tokens=64, token_buckets=(8, 64), num_threads=1,
        target_modules=tuple(name for name in names if name in known or name == "all-linear"), compile=False,
        **changes,
    )  # fmt: skip


def make_bench(architecture: str, folder: Path, *, is_tied: bool, **changes: Any) -> Bench:
    base = make_model(folder / "base", architecture, is_tied=is_tied)
    loaded = load_model(replace(options(base), **changes))
    adapters, oracles = {}, {"base": PeftOracle(base)}
    for name, arguments in adapters_of(ARCHITECTURES[architecture], is_tied=is_tied).items():
        adapter = make_adapter(base, folder / name, **arguments)
        adapters[name] = loaded.decoder.decode(*admitted(loaded, adapter))
        oracles[name] = PeftOracle(base, adapter)
    return Bench(base, loaded, adapters, oracles)


@pytest.fixture(scope="module", params=MODELS)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    architecture, is_tied = MODELS[request.param]
    with apart():
        yield make_bench(architecture, tmp_path_factory.mktemp(architecture), is_tied=is_tied)


def check(bench: Bench, found: dict[str, torch.Tensor], rows: Rows) -> None:
    """Every row against PEFT, and no adapter's row like the base's."""
    for name, (ids, gates) in rows.items():
        expected = bench.oracles[name.removesuffix(" again")].logits(ids)[-1]
        assert float((found[name] - expected).abs().max()) <= TOLERANCE, name
        is_base = torch.allclose(expected, bench.oracles["base"].logits(ids)[-1], atol=10 * TOLERANCE)
        assert is_base == (not gates), f"{name}: its adapter shows too little to be compared"


def test_every_kind_of_target_answers_as_peft_in_one_mixed_batch(bench: Bench) -> None:
    rows = bench.rows()
    check(bench, bench.logits(rows), rows)


def test_every_kind_of_target_answers_as_peft_alone(bench: Bench) -> None:
    for name, row in bench.rows().items():
        check(bench, bench.logits({name: row}), {name: row})


def test_after_swaps_every_kind_answers_as_before(bench: Bench, tmp_path: Path) -> None:
    before = bench.loaded.runner.addresses()
    found = ARCHITECTURES[bench.loaded.model_type.removesuffix("_text")]
    for seed in range(2):
        folder = tmp_path / str(seed)
        arguments = {"target_modules": [found.embedding, "lm_head", found.mlp], "r": 8, "lora_alpha": 1}
        make_adapter(bench.base, folder, seed=seed, **arguments)
        adapter = bench.loaded.decoder.decode(*admitted(bench.loaded, folder))
        for first_slot in range(0, bench.loaded.limits.num_slots, 2):
            bench.write(adapter, first_slot)
    rows = bench.rows()
    check(bench, bench.logits(rows), rows)
    assert bench.loaded.runner.addresses() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_whatever_is_in_a_slot_changes_no_bit_of_another_row(bench: Bench, value: float) -> None:
    rows = bench.rows()
    clean = bench.logits(rows)
    runner = bench.loaded.runner
    modules: list[SlotLinear | SlotEmbedding] = [*runner.slot_linears.values(), *runner.slot_embeddings.values()]
    for poisoned in ("ends", "biases"):
        slots = [slot for slot, _ in rows[poisoned][1]]
        for module in modules:
            for slot in slots:
                a_KI, _ = module.slot(slot)
                a_KI.fill_(value)
        dirty = bench.logits(rows)
        changed = {name for name in rows if not torch.equal(clean[name], dirty[name])}
        assert changed == {poisoned}
        bench.write(bench.adapters[poisoned], slots[0])
    assert all(torch.equal(clean[name], logits) for name, logits in bench.logits(rows).items())


def test_a_weight_scales_the_bias_too(bench: Bench, tmp_path: Path) -> None:
    arguments = adapters_of(ARCHITECTURES[bench.loaded.model_type.removesuffix("_text")], is_tied=False)["head"]
    oracle = PeftOracle(bench.base, make_adapter(bench.base, tmp_path / "head", **arguments), weight=0.3)
    gates = tuple((slot, 0.3) for slot in bench.write(bench.adapters["head"], 0))
    found = bench.logits({"head": (prompt(3), gates)})["head"]
    torch.testing.assert_close(found, oracle.logits(prompt(3))[-1], atol=TOLERANCE, rtol=0)


def test_log_probabilities_of_prompts_are_those_of_each_rows_adapter(bench: Bench) -> None:
    rows = bench.rows()
    segments = [
        Segment(ids, 0, (row,), gates, None, scoring=Scoring(ids[1:])) for row, (ids, gates) in enumerate(rows.values())
    ]
    for (name, (ids, _)), computed in zip(rows.items(), bench.loaded.runner.run(segments), strict=True):
        expected = bench.oracles[name.removesuffix(" again")].logits(ids).log_softmax(-1)
        found = [score.logprob for score in computed.scores]
        assert found == pytest.approx([float(expected[i, t]) for i, t in enumerate(ids[1:])], abs=TOLERANCE), name


def test_padding_rows_read_no_token_behind_the_step(bench: Bench) -> None:
    many = [Segment((5, 6, 7, 8, 9, 10, 11), 0, (row,), (), Sampling()) for row in range(8)]
    bench.loaded.runner.logits(many)
    rows = {"base": (prompt(1), ())}
    check(bench, bench.logits(rows), rows)


def test_compiled_it_answers_as_peft_and_swaps_recompile_nothing(tmp_path: Path) -> None:
    with apart():
        bench = make_bench("llama", tmp_path, is_tied=True, compile=True, token_buckets=(8,), max_sequences=2)
        before = bench.loaded.runner.addresses()
        for name in ("biases", "embedding", "head", "ends", "as one"):
            gates = tuple((slot, 1.0) for slot in bench.write(bench.adapters[name], 3))
            rows: Rows = {name: (prompt(0), gates), "base": (prompt(1), ())}
            check(bench, bench.logits(rows), rows)
            check(bench, bench.logits({"base": rows["base"]}), {"base": rows["base"]})
        assert bench.loaded.runner.recompiles == 0
        assert bench.loaded.runner.addresses() == before


def test_without_being_asked_for_the_ends_have_no_slots_and_the_error_says_what_to_set(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "llama", is_tied=True)
    with apart():
        loaded = load_model(replace(options(base), target_modules=()))
    assert not loaded.runner.slot_embeddings
    assert not loaded.runner.has_head_slots
    adapter = make_adapter(base, tmp_path / "ends", target_modules=["embed_tokens", "lm_head"])
    with pytest.raises(UnsupportedAdapterError) as caught:
        loaded.decoder.check(admitted(loaded, adapter)[0])
    assert [violation.subject for violation in caught.value.violations] == ["model.embed_tokens", "lm_head"]
    assert "HOTSLOT_TARGET_MODULES=all-linear,embed_tokens,lm_head" in caught.value.message


def test_a_bias_that_does_not_fit_into_the_slots_is_refused(bench: Bench, tmp_path: Path) -> None:
    found = ARCHITECTURES[bench.loaded.model_type.removesuffix("_text")]
    with apart():
        loaded = load_model(replace(options(bench.base), num_slots=2))
    for has_bias in (False, True):
        folder = tmp_path / str(has_bias)
        make_adapter(bench.base, folder, target_modules=[found.attention], r=8, lora_bias=has_bias)
        manifest, blob = admitted(loaded, folder)
        if has_bias:
            with pytest.raises(RankTooLargeError, match="HOTSLOT_NUM_SLOTS"):
                loaded.decoder.check(manifest)
        else:
            assert loaded.decoder.decode(manifest, blob).max_rank == 8


Q0 = "model.layers.0.self_attn.q_proj"


def without(spec: BaseSpec, path: str, *others: BaseModule) -> BaseSpec:
    return replace(spec, modules=(*(module for module in spec.modules if module.path != path), *others))


REPLACED = {
    "missing": (
        BaseModule("model.layers.0.self_attn.qkv_proj", ModuleKind.LINEAR, 32, 64), "is not in the loaded model"
    ),
    "another kind": (
        BaseModule("model.layers.0.self_attn", ModuleKind.LINEAR, 32, 32), "is a LlamaAttention, expected a Linear"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("module", "problem"), REPLACED.values(), ids=REPLACED)
def test_modules_that_loading_replaced_have_no_slots_and_are_refused_where_they_are_named(
    module: BaseModule, problem: str, tmp_path: Path
) -> None:
    base = make_model(tmp_path, "llama", is_tied=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    spec = without(spec_from_folder(base, "tiny"), Q0, module)
    targets = choose_targets(model, spec, ())
    assert targets.without_slots == {module.path: problem}
    assert {target.name for target in targets.linears} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    with pytest.raises(InvalidRequestError, match=f"{module.path} {problem}.*set it to v_proj"):
        choose_targets(model, spec, ("v_proj", module.name))


def test_a_model_whose_linears_have_other_sizes_is_refused(tmp_path: Path) -> None:
    base = make_model(tmp_path, "llama", is_tied=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    spec = without(spec_from_folder(base, "tiny"), Q0, BaseModule(Q0, ModuleKind.LINEAR, 32, 33))
    with pytest.raises(InvalidRequestError, match=rf"{Q0} has sizes \(32, 32\), expected \(32, 33\); set it to down"):
        choose_targets(model, spec, ())
    assert {target.name for target in choose_targets(model, spec, ("v_proj",)).modules} == {"v_proj"}


def test_an_embedding_that_was_resized_is_refused_only_where_it_has_slots(tmp_path: Path) -> None:
    base = make_model(tmp_path, "llama", is_tied=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    spec = spec_from_folder(base, "tiny")
    model.resize_token_embeddings(70)
    assert choose_targets(model, spec, ()).embedding is None
    with pytest.raises(InvalidRequestError, match=r"model.embed_tokens has sizes \(70, 32\)"):
        choose_targets(model, spec, ("all-linear", "embed_tokens"))


def test_a_name_that_means_nothing_is_refused_with_those_that_do(tmp_path: Path) -> None:
    base = make_model(tmp_path, "gpt_neox", is_tied=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with pytest.raises(InvalidRequestError, match=r"found \['q_proj'\], expected all-linear or some of .*embed_in"):
        choose_targets(model, spec_from_folder(base, "tiny"), ("all-linear", "q_proj"))


def test_linears_without_slots_are_left_to_the_kernels_too(tmp_path: Path) -> None:
    """For few tokens a row has the same bits, whichever linears have slots."""
    base = make_model(tmp_path / "base", "llama", is_tied=False)
    with apart():
        all_linear = load_model(options(base))
        few = load_model(replace(options(base), target_modules=("v_proj",)))
    assert len(few.runner.slot_linears) < len(all_linear.runner.slot_linears)
    segment = Segment(prompt(0), 0, (0,), (), Sampling())
    with torch.profiler.profile() as profile:
        logits_V = few.runner.logits([segment])[0].clone()
    assert torch.equal(logits_V, all_linear.runner.logits([segment])[0])
    called = {event.key for event in profile.key_averages()}
    assert "hotslot_cpu::linear" in called
    assert not called & {"aten::linear", "aten::addmm", "aten::mm"}
