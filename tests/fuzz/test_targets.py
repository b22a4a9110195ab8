"""The fuzz targets, briefly: seeds, regressions, mutations of both, and inputs from hypothesis."""

from collections import Counter
from pathlib import Path

import pytest
from safetensors.numpy import load

from hotslot.errors import Violation
from hotslot.formats.safetensors_header import Header, TensorEntry
from tests.support.checkpoints import adapter
from tools.fuzz import engines, oracle
from tools.fuzz.packed import Packed, Shape
from tools.fuzz.target import FuzzOutcome, FuzzTarget, OracleError, outcome_of
from tools.fuzz.targets import TARGETS

REGRESSIONS = sorted((Path(__file__).parent / "regressions").glob("*/*"))
NUM_MUTATED = {"header": 4_000, "config": 2_000, "checkpoint": 600, "request": 4_000}
NUM_GENERATED = {"header": 300, "config": 300, "checkpoint": 150, "request": 200}
MIN_CODES = {"header": 12, "config": 6, "checkpoint": 30, "request": 25}


class Tally:
    """Counts how inputs end; what escapes fails the test."""

    def __init__(self, target: FuzzTarget) -> None:
        self.num_runs = 0
        self.num_accepted = 0
        self.codes: Counter[str] = Counter()
        self._target = target

    def run(self, data: bytes) -> None:
        outcome = self._target.run(data)
        self.num_runs += 1
        self.num_accepted += outcome.is_accepted
        self.codes.update(outcome.codes)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_seeds_and_their_mutations_are_accepted_as_others_read_them_or_refused(target: FuzzTarget) -> None:
    tally = Tally(target)
    engines.mutate(target, tally.run, NUM_MUTATED[target.name], 0)
    assert tally.num_runs == NUM_MUTATED[target.name]
    assert tally.num_accepted > tally.num_runs // 50, "the mutator makes nothing that is sound"
    assert len(tally.codes) >= MIN_CODES[target.name], f"the mutator reaches only {sorted(tally.codes)}"


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_generated_inputs_are_accepted_as_others_read_them_or_refused(target: FuzzTarget) -> None:
    tally = Tally(target)
    engines.generate(target, tally.run, NUM_GENERATED[target.name], 0)
    assert tally.num_accepted > 0
    assert tally.codes


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_input_that_was_a_finding_is_none_any_more(path: Path) -> None:
    TARGETS[path.parent.name].run(path.read_bytes())


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_mutations_are_the_same_for_the_same_seed(target: FuzzTarget) -> None:
    runs: list[list[bytes]] = [[], []]
    for inputs in runs:
        engines.mutate(FuzzTarget("", target.run, target.mutate, lambda: target.seeds()[:20]), inputs.append, 120, 7)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 100


@pytest.mark.parametrize("shape", [Shape(0), Shape.MLX_NAME | Shape.PICKLE])
def test_a_packed_checkpoint_has_the_files_that_went_in(shape: Shape) -> None:
    packed = Packed(b"{}", b"weights", shape)
    assert Packed.from_bytes(packed.to_bytes()) == packed
    assert Packed.of_files(packed.files()) == packed


def test_a_checkpoint_in_two_files_has_the_tensors_that_went_in() -> None:
    weights = adapter().files()["adapter_model.safetensors"]
    shards = Packed(b"{}", weights, Shape.SHARDED).files()
    names = [f"adapter_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert sorted(shards) == ["adapter_config.json", *names]
    parts = [load(shards[name]) for name in names]
    assert all(parts)
    found, expected = parts[0] | parts[1], load(weights)
    assert {name: value.tobytes() for name, value in found.items()} == {n: v.tobytes() for n, v in expected.items()}


def test_the_oracle_sees_a_tensor_read_wrongly(tmp_path: Path) -> None:
    file = adapter(rank=1).files()["adapter_model.safetensors"]
    with pytest.raises(OracleError):
        oracle.check_header(file, Header((TensorEntry("x", "F32", (1,), 0, 4),), {"format": "pt"}), tmp_path / "w")
    with pytest.raises(OracleError):
        oracle.check_header(file[:-1], Header((), {}), tmp_path / "w")


def test_the_oracle_sees_a_violation_that_says_nothing() -> None:
    with pytest.raises(OracleError):
        outcome_of([Violation("BAD", "", "", "", "")])
    assert outcome_of([Violation.of("BAD", "", "x", "y", "z")]) == FuzzOutcome(frozenset({"BAD"}))
