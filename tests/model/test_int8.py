"""With weights in 8 bits a worker answers as PEFT does on a model that has exactly the values these stand for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hotslot.errors import InvalidRequestError
from tests.model.architectures import CASES
from tests.model.exact_adapters import NUM_SLOTS, ExactBench, kinds_of, prompt_of
from tests.model.tiny_worker import apart, load_tiny
from tests.support.tiny_models import Architecture, load_whole, make_adapter, save_model
from worker_service.model.int8_weights import Int8Weight, round_weights

ARCHITECTURES = [
    *("llama", "gemma2"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama, compiled", "phi3", "gpt_neox", "gpt2", "opt")),
]


def bench_of(architecture: Architecture, folder: Path, *, is_compiled: bool) -> ExactBench:
    """A worker that rounds a model, and PEFT on one that was saved rounded; both with every kind of adapter."""
    base = save_model(folder / "base", architecture, tie_word_embeddings=False)
    rounded = save_model(folder / "rounded", architecture, tie_word_embeddings=False)
    model = load_whole(base)
    assert round_weights(model)
    model.save_pretrained(rounded)
    loaded = load_tiny(base, num_slots=NUM_SLOTS, target_modules=("all-linear",), weights="int8", compile=is_compiled)
    made = ExactBench(rounded, loaded, {}, {})
    for name, arguments in kinds_of(architecture).items():
        if name != "ends":
            made.add(name, make_adapter(base, folder / name, **arguments))
    return made


@pytest.fixture(scope="module", params=ARCHITECTURES)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExactBench]:
    name, _, is_compiled = request.param.partition(",")
    with apart():
        yield bench_of(CASES[name].architecture, tmp_path_factory.mktemp(name), is_compiled=bool(is_compiled))


def test_alone_and_beside_each_other(bench: ExactBench) -> None:
    driver = bench.driver()
    for number, name in enumerate(bench.adapters):
        bench.check_all(driver, [({name: 1.0}, prompt_of(number))])
    bench.check_all(driver, [({}, prompt_of(8)), *(({name: 0.5}, prompt_of(7)) for name in bench.adapters)])
    assert bench.loaded.runner.recompiles == 0


def test_the_form_is_part_of_what_workers_have_in_common(bench: ExactBench) -> None:
    assert bench.loaded.dtype == "float32+int8"


def test_linears_head_and_embedding_are_kept_in_8_bits(bench: ExactBench) -> None:
    model = bench.loaded.runner._model
    wide = {name for name, parameter in model.named_parameters() if parameter.ndim > 1 and parameter.numel()}
    assert {name for name in wide if "embed_positions" not in name and "wpe" not in name} == set()
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    assert [end.weight.dtype for end in ends] == [torch.int8, torch.int8]


def test_a_tied_head_shares_its_8_bits(tmp_path: Path) -> None:
    base = save_model(tmp_path, CASES["llama"].architecture, tie_word_embeddings=True)
    with apart():
        model = load_tiny(base, weights="int8").runner._model
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    assert len({end.weight.data_ptr() for end in ends}) == 1


@pytest.mark.parametrize("changes", [{"cpu_kernels": False}, {"dtype": "float16"}], ids=str)
def test_without_the_kernels_a_worker_does_not_start(tmp_path: Path, changes: dict[str, object]) -> None:
    base = save_model(tmp_path, CASES["llama"].architecture)
    with apart(), pytest.raises(InvalidRequestError, match="weights: found int8"):
        load_tiny(base, weights="int8", **changes)


def test_rounding_is_done_once_for_a_parameter_that_two_modules_share(tmp_path: Path) -> None:
    model = load_whole(save_model(tmp_path, CASES["llama"].architecture, tie_word_embeddings=True))
    before = model.get_input_embeddings().weight.detach().clone()
    rounded = round_weights(model)
    shared = rounded[model.get_output_embeddings().weight]
    assert torch.equal(shared.q_OI, Int8Weight.of(before).q_OI)
    assert torch.equal(model.get_input_embeddings().weight, shared.values(before.dtype))
