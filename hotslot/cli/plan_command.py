"""Command that plans a deployment: memory, replicas and cost of a workload."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hotslot.capacity import (
    DEFAULT_MAX_RANK,
    ELEMENT_BYTES,
    CapacityPlan,
    StepCost,
    WorkerShape,
    Workload,
    fit_step_cost,
    plan,
    shape_on,
)
from hotslot.cli.options import JsonOption
from hotslot.cli.output import print_document, rendered, say
from hotslot.cli.rendering import human_size, table
from hotslot.device_sizes import CPU
from hotslot.errors import FieldViolation, InvalidRequestError, SourceNotFoundError
from hotslot.sources import HubName, parse_base_source

DEFAULT_SHAPE = WorkerShape()
HOURS_PER_MONTH = 730


def plan_command(
    base: Annotated[str, typer.Option(metavar="DIR|hf:ORG/NAME", help="The base model: a folder, or a repository.")],
    adapters: Annotated[int, typer.Option(min=1, help="Adapters that are served.")],
    rank: Annotated[int, typer.Option(min=1, max=8192, help="Their rank.")],
    rps: Annotated[float, typer.Option(min=0.0, help="Requests per second.")] = 1.0,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of a prompt, those found in the cache left out.")
    ] = 256,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 128,
    step: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOKENS=MS",
            help="A measured step: its tokens and milliseconds, as hotslot_step_seconds and `make bench-model` have "
            "them; give two or more. Without one nothing is said about time.",
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Element type of the workers.")] = DEFAULT_SHAPE.dtype,
    device: Annotated[
        str, typer.Option(metavar="cpu|cuda", help="Device of the workers, which decides what no option names.")
    ] = CPU,
    memory_gib: Annotated[float, typer.Option(min=0.0, help="Memory of a GPU in GiB, with --device cuda.")] = 0.0,
    num_slots: Annotated[int, typer.Option(min=0, help="Slots of a worker; 0 is by device.")] = 0,
    slot_rank: Annotated[int, typer.Option(min=1, help="Ranks of one slot.")] = DEFAULT_SHAPE.slot_rank,
    kv_tokens: Annotated[int, typer.Option(min=0, help="Tokens that a worker's KV cache holds; 0 is by device.")] = 0,
    block_tokens: Annotated[int, typer.Option(min=0, help="Tokens of one KV block; 0 is by device.")] = 0,
    max_sequences: Annotated[int, typer.Option(min=0, help="Rows of a worker; 0 is by device.")] = 0,
    max_bucket: Annotated[int, typer.Option(min=0, help="Largest bucket of a worker; 0 is by device.")] = 0,
    target_modules: Annotated[str, typer.Option(help="HOTSLOT_TARGET_MODULES of the workers.")] = "",
    price: Annotated[float, typer.Option(min=0.0, help="Price of one worker for an hour.")] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """CapacityPlan the workers for a workload: their memory, their number, and what they cost.

    Bytes are exact; the number of workers is as good as the steps that it is given.

    JSON: {base, workload, worker, step_cost, plan, device_bytes, cost_per_hour}.
    """
    if dtype not in ELEMENT_BYTES:
        raise InvalidRequestError(
            [FieldViolation("--dtype", f"found {dtype!r}, expected one of {', '.join(ELEMENT_BYTES)}")]
        )
    cost = _cost_of(step or [])
    workload = Workload(adapters, rank, rps, prompt_tokens, answer_tokens)
    # Reading the model's folder needs numpy, and other commands do without it.
    from hotslot.formats.model_sizes import sizes_of

    folder, name = _folder_of(base)
    sizes = sizes_of(folder, name, [word.strip() for word in target_modules.split(",") if word.strip()])
    asked = WorkerShape(dtype, num_slots, slot_rank, kv_tokens, block_tokens, max_sequences, max_bucket)
    shape = shape_on(device, int(memory_gib * 2**30), sizes, asked, max(rank, DEFAULT_MAX_RANK))
    found = plan(sizes, shape, workload, cost)
    if as_json:
        document = {
            "base": sizes,
            "workload": workload,
            "worker": shape,
            "step_cost": asdict(cost) if cost is not None else None,
            "plan": found,
            "device_bytes": found.memory.device_bytes,
            "cost_per_hour": found.replicas * price,
        }
        print_document(document)
        return
    print(_rendered(found, shape, price))
    for line in _advice(found, shape):
        say(line)


def _rendered(found: CapacityPlan, shape: WorkerShape, price: float) -> str:
    memory = found.memory
    rows = [
        ("weights", human_size(memory.weights_bytes), f"{shape.dtype}, on the device"),
        ("one slot", human_size(memory.slot_bytes), f"rank {shape.slot_rank} in every module with slots"),
        ("slots", human_size(memory.slots_bytes), f"{shape.num_slots} slots, on the device"),
        ("KV cache", human_size(memory.kv_bytes), f"{shape.kv_tokens} tokens, on the device"),
        ("device", human_size(memory.device_bytes), "these together; step buffers and the runtime come on top"),
        ("one adapter", human_size(memory.adapter_bytes), f"{memory.slots_per_adapter} slots, in host memory"),
        ("host cache", human_size(memory.host_cache_bytes), f"for {found.adapters_per_worker} adapters"),
    ]
    if found.requests_per_s_per_worker is not None and found.answer_s is not None:
        rows.append(("a worker", f"{found.requests_per_s_per_worker:.3g}/s", "requests, at 70 % of its steps"))
        rows.append(("an answer", f"{found.answer_s:.3g} s", "in a full batch, from its turn on"))
        rows.append(("replicas", str(found.replicas), "workers"))
        if price:
            hourly = found.replicas * price
            rows.append(
                ("cost", f"{hourly:.2f}/h", f"{hourly * HOURS_PER_MONTH:.0f} a month of {HOURS_PER_MONTH} hours")
            )
    made = table("", "EACH WORKER", "WHAT", right=("EACH WORKER",))
    for row in rows:
        made.add_row(*row)
    return rendered(made)


def _advice(found: CapacityPlan, shape: WorkerShape) -> Iterator[str]:
    each, has = found.memory.slots_per_adapter, f"a worker has {shape.num_slots}"
    if each > shape.num_slots:
        yield f"an adapter takes {each} slots, and {has}: it would be refused"
    elif found.slots_wanted > shape.num_slots:
        yield f"a full batch wants {found.slots_wanted} slots, and {has}: rows would wait for slots"
    if found.requests_per_s_per_worker is None:
        yield "nothing is said about time: give measured steps, as --step 1=12 --step 32=60"


def _cost_of(steps: Sequence[str]) -> StepCost | None:
    if not steps:
        return None
    try:
        pairs = [text.split("=") for text in steps]
        return fit_step_cost([(int(tokens), float(ms) / 1000) for tokens, ms in pairs])
    except ValueError as exc:
        problem = f"found {', '.join(steps)}, expected TOKENS=MILLISECONDS, as 32=60.5"
        raise InvalidRequestError([FieldViolation("--step", problem)]) from exc


def _folder_of(base: str) -> tuple[Path, str]:
    from hotslot.base_fetch import fetch_base_model

    where = parse_base_source(base)
    if isinstance(where, HubName):
        return fetch_base_model(where.repo_id, where.revision), where.repo_id
    if not where.is_dir():
        raise SourceNotFoundError(f"{base} is not a folder; a repository is hf:ORG/NAME", base)
    return where, base
