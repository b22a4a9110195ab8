"""Steps of few tokens on CPU are one call of recorded code, with the bits of the compiled layers."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import transformers
from structlog.testing import capture_logs
from torch._inductor.utils import clear_caches
from transformers import PreTrainedModel

from hotslot.contract.generation import Sampling
from tests.model.tiny_worker import MAX_SEQUENCE_TOKENS, SLOT_RANK, apart, decoded, load_tiny
from tests.support.tiny_models import SIZES, Architecture, make_adapter, save_model
from worker_service.demo_model import default_cache_dir
from worker_service.engine.messages import Scoring, Segment
from worker_service.model.cpu import library
from worker_service.model.cpu.recorder import SCRATCH
from worker_service.model.forward_calls import ForwardCalls
from worker_service.model.int8_checks import INT8
from worker_service.model.kept_programs import ProgramsNotKeptError
from worker_service.model.kept_start import FOLDER, SELF_TEST, KeptStart, answers_now
from worker_service.model.runner import TorchRunner
from worker_service.model.shared_code import INDUCTOR_DIR, CodeKey
from worker_service.model.step_programs import StepPrograms

LLAMA = Architecture(transformers.LlamaConfig, {**SIZES, "head_dim": 16})
TOKENS = 4


class Start:
    """One start of a tiny model over a cache directory; adapters are in all slots but the first, which starts use."""

    def __init__(self, folder: Path, weights: str) -> None:
        base, self.cache_dir = folder / "base", folder / "cache"
        if not base.exists():
            save_model(base, LLAMA, 0, tie_word_embeddings=False)
            clear_caches()  # A process of its own has loaded no kernels from the folders of others.
        assert library.load_kernels(default_cache_dir()), "this machine has a C++ compiler"
        with apart(), capture_logs() as logs:
            self.loaded = load_tiny(
                base, dtype="bfloat16", compile=True, token_buckets=(TOKENS,), max_sequences=TOKENS, num_slots=4,
                weights=weights, cache_dir=self.cache_dir,
            )  # fmt: skip
        self.runner = self.loaded.runner
        self.stages = [stage.name for stage in self.loaded.startup_stages]
        self.refusals = [log["why"] for log in logs if log["event"] == "kept_start_not_used"]
        self.model: PreTrainedModel = self.runner._model
        for slot in range(1, 4):
            path = folder / f"adapter{slot}"
            if not path.exists():
                make_adapter(base, path, target_modules="all-linear", r=4)
            for _ in self.runner.write_slots([slot], decoded(self.loaded, path)):
                pass

    @property
    def record(self) -> Path:
        """File that the first start left."""
        (found,) = (self.cache_dir / INDUCTOR_DIR / FOLDER).glob("*.json")
        return found


@pytest.fixture(scope="module", params=["full", INT8])
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Compiled, with weights in either form."""
    return Start(Path(tmp_path_factory.mktemp("programs")), request.param)


@pytest.fixture(scope="module")
def later(start: Start) -> Start:
    """Start of another worker over what the first one left, which has addresses of its own."""
    return Start(start.cache_dir.parent, "int8" if "int8" in start.loaded.dtype else "full")


@pytest.fixture(scope="module")
def runner(start: Start) -> TorchRunner:
    return start.runner


@pytest.fixture
def programs(runner: TorchRunner) -> StepPrograms:
    assert runner.programs is not None
    return runner.programs


def rows(random: Random, with_adapters: bool) -> list[Segment]:
    def gates() -> tuple[tuple[int, float], ...]:
        chosen = random.sample(range(1, 4), random.randrange(3)) if with_adapters else []
        return tuple((slot, random.choice([1.0, 0.5, -2.0])) for slot in chosen)

    return [
        Segment((random.randrange(60),), random.randrange(3), (row,), gates(), Sampling())
        for row in range(random.randrange(1, TOKENS + 1))
    ]


def test_each_kind_of_step_is_recorded(programs: StepPrograms) -> None:
    assert programs.num_recorded == 2, "with adapters and without"


@pytest.mark.parametrize("with_adapters", [False, True])
def test_steps_have_the_bits_of_the_compiled_layers(
    runner: TorchRunner, programs: StepPrograms, with_adapters: bool
) -> None:
    random = Random(3)
    answers = []
    for _ in range(20):
        segments = rows(random, with_adapters)
        with programs.set_aside():
            expected_RV = runner.logits(segments)[: len(segments)].clone()
        found_RV = runner.logits(segments)[: len(segments)]
        assert torch.equal(found_RV, expected_RV)
        answers.append(found_RV[0].clone())
    assert not all(torch.equal(answer, answers[0]) for answer in answers), "steps differ"


def test_a_prompt_is_one_call_too(runner: TorchRunner, programs: StepPrograms) -> None:
    prompt = [Segment((5, 9, 2), 0, (2,), ((1, 1.0),), Sampling())]
    with programs.set_aside():
        expected_RV = runner.logits(prompt)[:1].clone()
    assert torch.equal(runner.logits(prompt)[:1], expected_RV)


def test_a_later_start_compiles_nothing_and_answers_with_the_same_bits(start: Start, later: Start) -> None:
    assert "bind" not in start.stages
    assert not later.refusals
    assert "bind" in later.stages
    assert "record" not in later.stages
    assert all(bucket.compile_time_s == 0 for bucket in later.loaded.buckets)
    assert later.runner.addresses() != start.runner.addresses()
    random = Random(5)
    assert later.runner.programs is not None
    for index in range(20):
        # Rows begin anew, since both caches have a history of their own.
        segments = [replace(row, start=0) for row in rows(random, with_adapters=index % 2 == 0)]
        before = later.runner.programs.num_runs()
        expected_RV, found_RV = (each.runner.logits(segments)[: len(segments)].clone() for each in (start, later))
        assert torch.equal(found_RV, expected_RV)
        assert later.runner.programs.num_runs() == before + 1
    assert later.runner.recompiles == 0


def test_a_later_start_imports_no_compiler(start: Start) -> None:
    """Such a process has no use for Dynamo, nor for what it and transformers import for several processes."""
    shutil.copy(library._built(default_cache_dir()), start.cache_dir)
    settings = {
        "model": str(start.cache_dir.parent / "base"), "model_name": "tiny", "dtype": "bfloat16", "num_slots": 4,
        "weights": "int8" if "int8" in start.loaded.dtype else "full", "slot_rank": SLOT_RANK, "max_rank": 16,
        "max_sequences": TOKENS, "kv_tokens": 512, "block_tokens": 4, "max_sequence_tokens": MAX_SEQUENCE_TOKENS,
        "buckets": [TOKENS], "num_threads": 1, "cache_dir": str(start.cache_dir),
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.support.later_start", json.dumps(settings)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert "bind" in found["stages"], done.stdout
    assert "record" not in found["stages"]
    assert found["imported"] == []


Record = dict[str, Any]


def first_program(record: Record) -> Record:
    program: Record = record["programs"]["layers"]["programs"][0]
    return program


def swap_weights(record: Record) -> None:
    """Two weights of one size change places, which every check of sizes passes."""
    names = {"0.self_attn.k_proj.weight": "0.self_attn.v_proj.weight"}
    names |= {new: old for old, new in names.items()}
    for place in first_program(record)["lasting"]:
        place[1] = names.get(place[1], place[1])


def move_scratch(record: Record) -> None:
    """Some output lies far beyond the scratch."""
    words, at = first_program(record)["words"], 1
    while True:
        count = words[at + 1]
        for place in range(at + 2, at + 2 + 2 * count, 2):
            if words[place] == SCRATCH:
                words[place + 1] = 1 << 40
                return
        at += 2 + 2 * count


CHANGES: dict[str, Callable[[Record], object]] = {
    "of another format": lambda record: record.update(format=99),
    "of another key": lambda record: record["facts"].update(torch="1.0"),
    "without programs": lambda record: record.pop("programs"),
    "without the head": lambda record: record["programs"].pop("head"),
    "an offset beyond its tensor": lambda record: first_program(record)["lasting"][0].__setitem__(2, 1 << 40),
    "an address in another word": lambda record: first_program(record)["lasting"][0].__setitem__(0, 0),
    "an address in no tensor": lambda record: first_program(record)["lasting"][0].__setitem__(1, "none"),
    "a weight in another's place": swap_weights,
    "a tensor of another size": lambda record: record["programs"]["layers"]["tensors"].popitem()[1][1].append(2),
    "a tensor of another type": lambda record: record["programs"]["head"]["tensors"].popitem()[1].reverse(),
    "an offset beyond the scratch": move_scratch,
    "a call of no kind": lambda record: first_program(record)["words"].__setitem__(1, 77),
    "more calls than there are": lambda record: first_program(record)["words"].__setitem__(0, 1 << 20),
    "a program cut off": lambda record: first_program(record)["words"].pop(),
    "words that are no numbers": lambda record: first_program(record)["words"].__setitem__(0, "x"),
    "libraries of other bytes": lambda record: record.update(libraries=dict.fromkeys(record["libraries"], "0")),
    "a library outside": lambda record: first_program(record)["code"][0].__setitem__(1, "../outside.so"),
    "other answers": lambda record: record["answers"].update({SELF_TEST: "0"}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_record_that_does_not_fit_is_refused(later: Start, change: Callable[[Record], object]) -> None:
    kept = later.record.read_bytes()
    record = json.loads(kept.partition(b"\n")[2])
    place = KeptStart(later.cache_dir, CodeKey(dict(record["facts"])))
    before = json.dumps(record)
    change(record)
    assert json.dumps(record) != before, "something was changed"
    write(later.record, record)
    try:
        with pytest.raises(ProgramsNotKeptError):
            adopt(place, later)
    finally:
        later.record.write_bytes(kept)
        adopt(place, later)


@pytest.mark.parametrize("at", [0, 70, -1])
def test_a_damaged_record_is_not_read(later: Start, at: int) -> None:
    kept = later.record.read_bytes()
    record = json.loads(kept.partition(b"\n")[2])
    damaged = bytearray(kept)
    damaged[at] ^= 1
    later.record.write_bytes(damaged)
    try:
        assert KeptStart(later.cache_dir, CodeKey(record["facts"])).read() is None
    finally:
        later.record.write_bytes(kept)


@pytest.mark.slow
def test_a_start_goes_on_without_a_record_that_answers_otherwise(start: Start, later: Start) -> None:
    kept = later.record.read_bytes()
    record = json.loads(kept.partition(b"\n")[2])
    swap_weights(record)
    write(later.record, record)
    again = Start(start.cache_dir.parent, "int8" if "int8" in start.loaded.dtype else "full")
    assert len(again.refusals) == 1
    assert "answers differ" in again.refusals[0]
    assert "record" in again.stages
    assert later.record.read_bytes() == kept, "the record is written anew, of the same start"


def write(path: Path, record: Record) -> None:
    """Write a record with the digest that it should have."""
    content = json.dumps(record).encode()
    path.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def adopt(place: KeptStart, start: Start) -> None:
    """Bind a record as a start does; raises ProgramsNotKeptError."""
    record = place.read()
    if record is None:
        raise ProgramsNotKeptError("it was not read")
    record.bind(start.runner.programs)
    record.check(answers_now(start.model, start.runner, start.loaded.limits))


@pytest.mark.parametrize("with_adapters", [False, True])
def test_a_step_of_decoding_does_not_go_through_the_forward(start: Start, later: Start, with_adapters: bool) -> None:
    gates = ((1, 1.0),) if with_adapters else ()
    segments = [Segment((5,), 2, (row,), gates, Sampling()) for row in range(TOKENS)]
    for each in (start, later):
        runner, seen = each.runner, list[bool]()
        assert runner.forwards is not None
        if each is later and not runner.forwards.kinds:  # other tests had it bind its programs anew
            runner.note_forwards()
        assert len(runner.forwards.kinds) == 2, "with adapters and without"
        hook = each.model.register_forward_hook(lambda *_, seen=seen: seen.append(True))
        try:
            found_RV = runner.logits(segments).clone()
            assert not seen
            assert torch.equal(runner.forward(runner.prepare(segments)), found_RV)
            assert seen
        finally:
            hook.remove()


def test_a_later_start_notes_what_the_first_did_and_compares_its_answers(
    start: Start, later: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads(later.record.read_bytes().partition(b"\n")[2])
    record = KeptStart(later.cache_dir, CodeKey(content["facts"])).read()
    assert record is not None
    assert start.runner.forwards is not None
    assert later.runner.forwards is not None
    assert set(record.forwards) == start.runner.forwards.kinds
    later.runner.note_forwards(record.forwards)
    assert later.runner.forwards.kinds == start.runner.forwards.kinds
    record.check(answers_now(later.model, later.runner, later.loaded.limits))
    plain = ForwardCalls.run
    monkeypatch.setattr(ForwardCalls, "run", lambda self: plain(self) + 1)
    with pytest.raises(ProgramsNotKeptError, match="answers differ"):
        record.check(answers_now(later.model, later.runner, later.loaded.limits))


def test_a_later_start_leaves_alone_what_the_first_did_not_note(later: Start) -> None:
    runner = later.runner
    assert runner.forwards is not None
    runner.forwards.forget()
    try:
        runner.note_forwards(())
        assert not runner.forwards.kinds
    finally:
        runner.note_forwards()


def test_a_prompt_that_is_scored_has_its_own_decoders_output(start: Start) -> None:
    def scores(prompt: tuple[int, ...]) -> list[float | None]:
        [computed] = start.runner.run([Segment(prompt, 0, (2,), (), Sampling(), scoring=Scoring(prompt[1:]))])
        return [each.logprob for each in computed.scores]

    expected = scores((5, 9, 2))
    start.runner.run([Segment((row,), 0, (row,), (), Sampling()) for row in range(TOKENS)])
    assert scores((5, 9, 2)) == expected


def test_a_forward_whose_calls_answer_otherwise_is_left_alone(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = start.runner
    assert runner.forwards is not None
    plain = ForwardCalls.run
    monkeypatch.setattr(ForwardCalls, "run", lambda self: plain(self) + (len(self.calls) > 15))
    runner.forwards.forget()
    try:
        runner.note_forwards()
        assert not runner.forwards.kinds
    finally:
        monkeypatch.undo()
        runner.note_forwards()
    assert len(runner.forwards.kinds) == 2
