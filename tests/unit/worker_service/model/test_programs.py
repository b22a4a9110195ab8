"""Programs make the calls of compiled modules, with the same results, or are refused."""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch._inductor.codecache import PyCodeCache

from worker_service.demo_model import default_cache_dir
from worker_service.model.cpu import library
from worker_service.model.cpu.recorder import LINEARS
from worker_service.model.cpu.recording import Recording
from worker_service.model.decoder_layers import DecoderLayers
from worker_service.model.int8_weights import Int8Weight
from worker_service.model.programs import Programs
from worker_service.model.step_state import StepState

SIZE = 32
KEY = (3, False)


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    assert library.load_kernels(default_cache_dir()), "this machine has a C++ compiler"


@pytest.fixture
def generated() -> Iterator[ModuleType]:
    """A module such as the compiler writes, in which layers find what they call."""
    module = ModuleType("generated")
    module.__dict__.update(torch=torch, aten=torch.ops.aten, empty_strided_cpu=torch.empty_strided)
    PyCodeCache.modules.append(module)
    yield module
    PyCodeCache.modules.remove(module)


class Layer(nn.Module):
    """Weights of some linears, and code as the compiler writes it."""

    a: torch.Tensor
    b: torch.Tensor
    c: torch.Tensor

    def __init__(self, seed: int, names: dict[str, Any], compute: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name in ("a", "b", "c"):
            self.register_buffer(name, torch.randn(SIZE, SIZE, generator=generator) / SIZE**0.5)
        self.names = names
        object.__setattr__(self, "_compiled_call_impl", lambda *args, **kw: compute(self, *args, **kw))


def two_of_one_input(layer: Layer, x: torch.Tensor, **_: Any) -> torch.Tensor:
    linear = layer.names["torch"].ops.hotslot_cpu.linear.default
    linear(x, layer.a, None)
    # Equal values in another place, as the compiler writes the input of linears that it does not look into.
    copied = layer.names["empty_strided_cpu"]((3, SIZE), (SIZE, 1), dtype=torch.float32)
    copied.copy_(x)
    y: torch.Tensor = linear(linear(copied, layer.b, None), layer.c, None)
    return y


def programs_of(layers: list[Layer]) -> Programs:
    step = StepState.allocate(max_tokens=8, num_slots=1, max_segments=2, max_blocks=1, device=torch.device("cpu"))
    return Programs("layers", layers, step, torch.empty(1 << 20, dtype=torch.uint8))


def run(layers: list[Layer], x: torch.Tensor, **named: Any) -> torch.Tensor:
    for layer in layers:
        x = layer(x, **named)
    return x


def record(programs: Programs, layers: list[Layer], x: torch.Tensor, **named: Any) -> None:
    with Recording().installed() as recording, programs.recording(recording, KEY):
        run(layers, x, **named)


def random(seed: int) -> torch.Tensor:
    return torch.randn(3, SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_layers", [1, 2, 5])
def test_a_program_answers_to_the_bit_like_the_modules_for_other_inputs(generated: ModuleType, num_layers: int) -> None:
    layers = [Layer(seed, generated.__dict__, plain) for seed in range(num_layers)]
    programs = programs_of(layers)
    record(programs, layers, random(1))
    assert programs.keys == {KEY}
    for seed in range(2, 5):
        x = random(seed)
        found = run(layers, x)
        programs.enabled = False
        assert torch.equal(found, run(layers, x))
        programs.enabled = True
    assert not torch.equal(run(layers, random(2)), run(layers, random(3)))


def plain(layer: Layer, x: torch.Tensor, **_: Any) -> torch.Tensor:
    linear = layer.names["torch"].ops.hotslot_cpu.linear.default
    y: torch.Tensor = linear(linear(x, layer.a, None), layer.b, layer.c[0])
    return y


def test_the_modules_are_not_called_while_there_is_a_program(generated: ModuleType) -> None:
    calls: list[int] = []

    def counted(layer: Layer, x: torch.Tensor, **_: Any) -> torch.Tensor:
        calls.append(1)
        return plain(layer, x)

    layers = [Layer(seed, generated.__dict__, counted) for seed in range(3)]
    programs = programs_of(layers)
    record(programs, layers, random(1))
    calls.clear()
    run(layers, random(2))
    assert not calls
    run(layers, random(2)[:2])
    assert len(calls) == 3, "another number of tokens has no program"


def test_linears_of_equal_inputs_are_one_call(generated: ModuleType) -> None:
    layers = [Layer(0, generated.__dict__, two_of_one_input)]
    programs = programs_of(layers)
    record(programs, layers, random(1))
    words = programs._programs[KEY].words.tolist()
    assert words[0] == 2
    assert words[1] == LINEARS
    x = random(2)
    assert torch.equal(run(layers, x), plain_c(layers[0], x))


def plain_c(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    linear = torch.ops.hotslot_cpu.linear
    y: torch.Tensor = linear(linear(x, layer.b, None), layer.c, None)
    return y


def calls_an_operator(layer: Layer, x: torch.Tensor, **_: Any) -> torch.Tensor:
    y: torch.Tensor = layer.names["torch"].ops.aten.mm.default(x, layer.a)
    return y


def reads_memory_of_the_moment(layer: Layer, x: torch.Tensor, **_: Any) -> torch.Tensor:
    y: torch.Tensor = layer.names["torch"].ops.hotslot_cpu.linear.default(x, layer.a.clone(), None)
    return y


def returns_its_input(layer: Layer, x: torch.Tensor, **_: Any) -> torch.Tensor:
    return x


@pytest.mark.parametrize("compute", [calls_an_operator, reads_memory_of_the_moment, returns_its_input])
def test_calls_that_a_program_cannot_make_leave_a_step_to_the_modules(
    generated: ModuleType, compute: Callable[..., torch.Tensor]
) -> None:
    layers = [Layer(0, generated.__dict__, plain), Layer(1, generated.__dict__, compute)]
    programs = programs_of(layers)
    before = run(layers, random(2))
    record(programs, layers, random(1))
    assert not programs.keys
    assert torch.equal(run(layers, random(2)), before)
    assert generated.torch is torch, "what was replaced is back"


def test_an_input_that_is_computed_between_modules_is_no_program(generated: ModuleType) -> None:
    layers = [Layer(seed, generated.__dict__, plain) for seed in range(2)]
    programs = programs_of(layers)
    with Recording().installed() as recording, programs.recording(recording, KEY):
        run(layers[1:], run(layers[:1], random(1)) * 2.0)
    assert not programs.keys


def test_inputs_of_another_layout_go_through_the_modules(generated: ModuleType) -> None:
    layers = [Layer(seed, generated.__dict__, plain) for seed in range(2)]
    programs = programs_of(layers)
    record(programs, layers, random(1))
    x = random(2)
    assert torch.equal(run(layers, x.T.contiguous().T), run(layers, x))


def in_8_bits(layer: Layer, x: torch.Tensor, **_: Any) -> torch.Tensor:
    of_kernels = layer.names["torch"].ops.hotslot_cpu
    y = of_kernels.linear_int8.default(x, layer.q_OI, layer.scale_O, layer.c[0])
    slots = (layer.a, layer.b, layer.slot_scale_S, layer.one_SK, layer.gates_TS)
    z: torch.Tensor = of_kernels.slot_linear_int8.default(y, layer.q_OI, layer.scale_O, None, *slots)
    return z


def test_linears_in_8_bits_are_calls_of_a_program(generated: ModuleType) -> None:
    layers = [Layer(seed, generated.__dict__, in_8_bits) for seed in range(2)]
    for layer in layers:
        weight = Int8Weight.of(layer.c)
        for name, value in (
            ("q_OI", weight.q_OI), ("scale_O", weight.scale_O), ("slot_scale_S", torch.tensor([0.5, 0.0])),
            ("one_SK", torch.zeros(2, SIZE // 2)), ("gates_TS", torch.ones(3, 2)),
        ):  # fmt: skip
            layer.register_buffer(name, value)
    programs = programs_of(layers)
    before = run(layers, random(2))
    record(programs, layers, random(1))
    assert programs.keys == {KEY}
    assert torch.equal(run(layers, random(2)), before)


def test_every_operator_of_ours_is_there_while_a_step_is_recorded(generated: ModuleType) -> None:
    names = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("hotslot")}
    assert {"hotslot_cpu::linear", "hotslot_cpu::linear_int8", "hotslot::attend"} <= names
    with Recording().installed():
        for namespace, name in (found.split("::") for found in sorted(names)):
            assert callable(getattr(getattr(generated.torch.ops, namespace), name).default), name


def test_a_list_of_layers_ends_behind_a_call_that_computed_all_and_is_itself_as_a_whole_slice() -> None:
    plain, num_computed = nn.ModuleList(nn.Linear(1, 1) for _ in range(4)), 0
    layers = DecoderLayers(plain, lambda: num_computed)
    assert list(layers) == list(plain)
    assert layers[:4] is layers
    assert layers[0:9] is layers
    assert list(layers[1:3]) == list(plain)[1:3]
    assert layers[::-1][0] is plain[3]
    assert list(layers.state_dict()) == list(plain.state_dict())
    gone_through = []
    for layer in layers[:4]:
        gone_through.append(layer)
        num_computed += 1
    assert gone_through == [plain[0]]
    assert list(layers) == list(plain)
