"""Three ways to come to inputs: seeded mutation, hypothesis, and atheris where it is installed."""

import os
import traceback
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from random import Random

from hypothesis import HealthCheck, Phase, given, seed, settings

from tools.fuzz.strategies import STRATEGIES
from tools.fuzz.target import FuzzTarget

Run = Callable[[bytes], object]
MAX_INPUT_BYTES = 16_384
_POOL_SIZE = 4_096
_EXAMPLES_A_ROUND = 2_000


def has_atheris() -> bool:
    """Tell whether the coverage-guided engine can be used by this Python."""
    return find_spec("atheris") is not None


def mutate(target: FuzzTarget, run: Run, num_runs: int, number: int, found: Sequence[bytes] = ()) -> None:
    """The seeds and what atheris found, then chains of mutations of them; the same inputs for the same `number`."""
    rng = Random(number)
    firsts = [*target.seeds(), *found]
    for data in firsts[:num_runs]:
        run(data)
    pool = list(firsts)
    for _ in range(num_runs - len(firsts)):
        data = target.mutate(rng.choice(pool if rng.random() < 0.5 else firsts), rng)[:MAX_INPUT_BYTES]
        run(data)
        if len(pool) < _POOL_SIZE:
            pool.append(data)
        elif rng.random() < 0.1:
            pool[rng.randrange(len(pool))] = data


def found_in(corpus: Path) -> list[bytes]:
    """The inputs that reached something new under atheris."""
    return [path.read_bytes() for path in sorted((corpus / "found").glob("*"))]


def generate(target: FuzzTarget, run: Run, num_runs: int, number: int) -> None:
    """Inputs from the target's hypothesis strategy, in rounds, since a long one slows down."""
    for index in range(0, num_runs, _EXAMPLES_A_ROUND):

        @seed(number * 1_000_003 + index)
        @settings(
            max_examples=min(_EXAMPLES_A_ROUND, num_runs - index),
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(STRATEGIES[target.name])
        def once(data: bytes) -> None:
            run(data)

        once()


def guide(target: FuzzTarget, run: Run, num_runs: int, number: int, corpus: Path) -> None:
    """Coverage-guided mutation by atheris (libFuzzer); does not return. Figures go to standard error."""
    import atheris

    known = corpus / "seeds"
    found = corpus / "found"
    for folder in (known, found):
        folder.mkdir(parents=True, exist_ok=True)
    for index, data in enumerate(target.seeds()):
        (known / f"{index:04}").write_bytes(data)

    def mutated(data: bytes, max_size: int, chosen: int) -> bytes:
        rng = Random(chosen)
        try:
            changed = atheris.Mutate(data, max_size) if rng.random() < 0.25 else target.mutate(data, rng)
        except BaseException:  # noqa: BLE001 - A mutator that fails is our own bug, and must be seen.
            traceback.print_exc()
            os._exit(1)  # libFuzzer would wait for ever for a callback that raised.
        return bytes(changed[:max_size])

    arguments = [
        "fuzz", f"-runs={num_runs}", f"-seed={number + 1}", f"-max_len={MAX_INPUT_BYTES}", "-rss_limit_mb=0",
        "-timeout=86400", f"-artifact_prefix={found.parent}/", str(found), str(known),
    ]  # fmt: skip
    atheris.Setup(arguments, run, custom_mutator=mutated)
    atheris.Fuzz()
