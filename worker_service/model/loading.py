"""From a folder or a hub id to a model that is ready to serve."""

import gc
import itertools
import mmap
import os
from collections.abc import Callable, Sequence
from functools import partial

import structlog
import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from hotslot.contract.control import CompiledBucket
from hotslot.formats.base_model import spec_from_folder
from hotslot.formats.model_sizes import sizes_of
from worker_service.engine.limits import EngineLimits
from worker_service.model import compiler, self_test, varlen_attention
from worker_service.model.adapt import add_caches, add_slots, compile_layers
from worker_service.model.attention import KvCache
from worker_service.model.broken_code import drop_broken_code
from worker_service.model.buckets import bucket_for
from worker_service.model.code_key import code_key, telling_missing_compiler
from worker_service.model.cores import num_alive, torch_threads, usable_cores
from worker_service.model.cpu import library as kernels
from worker_service.model.cpu.compiler_tools import begin_preparing, spare_probes
from worker_service.model.cuda import add_slots as slot_kernels
from worker_service.model.cuda.activation import beside_steps, host_memory
from worker_service.model.cuda.compiling import compiler_settings
from worker_service.model.decoder_layers import DecoderLayers
from worker_service.model.deferred_compilation import compile_when_called
from worker_service.model.device_plan import DevicePlan
from worker_service.model.filled_slot import filled_slot
from worker_service.model.folder import model_folder
from worker_service.model.graph_checks import capture_steps
from worker_service.model.huge_pages import take_pages
from worker_service.model.int8_checks import INT8, check_kernels, check_weights
from worker_service.model.int8_weights import Int8Weights, round_weights
from worker_service.model.kept_programs import ProgramsNotKeptError
from worker_service.model.kept_start import SELF_TEST, KeptStart, answers_now, record_of_start
from worker_service.model.lean_imports import without_compiler
from worker_service.model.model_limits import block_tokens, engine_limits, with_sizes
from worker_service.model.options import LoadedModel, ModelOptions
from worker_service.model.runner import TorchRunner
from worker_service.model.shared_code import INDUCTOR_DIR, SharedCode
from worker_service.model.start_stages import StartStages
from worker_service.model.step_graphs import CudaCapture
from worker_service.model.step_programs import StepPrograms, digest_of_logits
from worker_service.model.step_state import StepState
from worker_service.model.targets import SlotTargets, choose_targets, find_layers
from worker_service.model.text_part import eos_token_ids, load_text_model
from worker_service.model.warm_up import trace_ahead, warm_up
from worker_service.model.weights import SlotLayout, SlotWeightsDecoder

log = structlog.get_logger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
MAX_GRAPHS = 256
MIN_ELEMENTS_A_THREAD = 2**14


def load_model(
    options: ModelOptions,
    on_stage: Callable[[str], None] = lambda _: None,
    shared_code: SharedCode | None = None,
) -> LoadedModel:
    """Load, adapt, compile, warm up and check a model; minutes the first time, seconds with a warm cache.

    `on_stage` hears what is going on; `shared_code` is asked for compiled code, and told when it is complete. Raises
    InvalidRequestError for options that do not fit the model, ModelNotServableError for one that cannot be served
    exactly, and CompilerMissingError where there is neither a compiler nor code that was shipped.
    """
    configure_torch(options)
    try:
        return _load(options, on_stage, shared_code)
    except ProgramsNotKeptError as exc:
        log.warning("kept_start_not_used", why=str(exc))
        refused = f"the shipped code does not fit: {exc}"
    # Outside of the handler, whose error holds the loaded model, which refers to itself: there may be no room for two.
    gc.collect()
    return _load(options, on_stage, shared_code, refused)


def _load(
    options: ModelOptions, on_stage: Callable[[str], None], shared_code: SharedCode | None, refused: str = ""
) -> LoadedModel:
    """Load with what an earlier start kept, where there is that; raises ProgramsNotKeptError where it does not fit.

    `refused` says why it did not fit before, so that it is left alone.
    """
    stages = StartStages(on_stage)
    dtype, device = DTYPES[options.dtype], torch.device(options.device)
    with stages.stage("fetch"):
        folder = model_folder(options.model)
        spec = spec_from_folder(folder, options.model_name or options.model)
        config = AutoConfig.from_pretrained(folder)
        with_flash = options.varlen_attention and varlen_attention.can_serve(device, dtype)
        num_block_tokens = block_tokens(options, with_flash)
        sizes = sizes_of(folder, spec.name, options.target_modules)
        options = with_sizes(options, config, sizes, num_block_tokens)
        limits = engine_limits(options, config, num_block_tokens)
        check_weights(options)
    with stages.stage("cache"):
        key = code_key(options, spec.digest, folder)
        if shared_code is not None:
            shared_code.bring(key)
        kept_start = KeptStart(options.cache_dir, key) if options.cache_dir is not None else None
        # Beside a GPU torch's compiler writes no C++.
        has_to_fit = key.is_open and options.compile and device.type == "cpu"
        kept = record_of_start(kept_start, shared_code, key, has_to_fit=has_to_fit, refused=refused)
    wants_kernels = options.cpu_kernels and device.type == "cpu"
    building = kernels.begin_building(options.cache_dir) if wants_kernels and not kernels.are_loaded() else None
    preparing = begin_preparing() if kept is None and options.compile and device.type == "cpu" else None
    with stages.stage("load"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        load = partial(load_text_model, folder, spec, dtype, device)
        text_model = without_compiler(load) if kept is not None else load()
        model, spec = text_model.model, text_model.spec
        model.requires_grad_(False)
        int8: Int8Weights = round_weights(model) if options.weights == INT8 else {}
    expectation: self_test.Expectation | None = None
    if kept is None:
        # Operators' threads wait for each other, so one whose core the C++ compiler has holds up all.
        num_threads = max(torch.get_num_threads() - num_alive(building, preparing), 1)
        with stages.stage("expect"), torch_threads(num_threads):
            expectation = self_test.expect(model, limits, dtype)
    with stages.stage("kernels"):
        if building is not None:
            building.join()
        with_kernels = (
            wants_kernels
            # Draws are computed by them whatever the element type is.
            and kernels.load_kernels(options.cache_dir)
            and dtype in kernels.DTYPES
        )
        check_kernels(int8, has_kernels=with_kernels)
    caches: list[mmap.mmap] = []
    """Their memory, whose pages are taken once the model is ready: a start touches few of them."""
    with stages.stage("adapt"):
        targets = choose_targets(model, spec, options.target_modules, text_model.paths)
        if targets.without_slots:
            examples = dict(itertools.islice(targets.without_slots.items(), 2))
            log.warning("modules_without_slots", modules=len(targets.without_slots), examples=examples)
        runner = _adapt(model, targets, limits, options, device, with_kernels, with_flash, int8, caches.append)
        layout = SlotLayout(
            base_model_digest=spec.digest,
            shapes={m.path: (m.in_features, m.out_features) for m in targets.modules},
            max_rank=options.max_rank,
            total_ranks=limits.num_slots * limits.slot_rank,
            target_modules=options.target_modules,
            dtype=dtype,
            without_slots=targets.without_slots,
        )
    if kept is not None:
        with stages.stage("bind"):
            kept.bind(runner.programs)
    buckets: tuple[CompiledBucket, ...] = ()
    # A model that was loaded before in this process has armed the compiler.
    with stages.stage("compile"), compiler.compiling(), telling_missing_compiler(key):
        num_compiled = -compiler.num_cache_misses()
        trace_ahead(runner, limits, on_stage, preparing)
        buckets = warm_up(runner, limits, on_stage)
        num_compiled += compiler.num_cache_misses()
    answers: dict[str, str] = {}
    if runner.programs is not None and kept is None:
        with stages.stage("record"), filled_slot(runner.slot_linears.values()):
            answers = runner.programs.record(runner.logits, runner.token_buckets, limits, runner.num_embeddings)
            log.info("steps_recorded", kinds=runner.programs.num_recorded)
    if runner.forwards is not None:
        with stages.stage("note"), filled_slot(runner.slot_linears.values()):
            note = partial(runner.note_forwards, kept.forwards if kept is not None else None)
            without_compiler(note) if kept is not None else note()
            log.info("steps_noted", kinds=len(runner.forwards.kinds))
    with stages.stage("self_test"):
        if expectation is not None:
            passed = self_test.check(model, runner, limits, expectation, dtype)
            answers[SELF_TEST] = digest_of_logits(passed.logits_PV)
            log.info("self_test_passed", relative_error=passed.found, plain_error=passed.plain, bound=passed.bound)
        else:
            assert kept is not None
            answers = answers_now(model, runner, limits)
            kept.check(answers)
            log.info("self_test_repeated", steps=len(answers))
    if runner.programs is not None and kept is None and kept_start is not None:
        noted = runner.forwards.kinds if runner.forwards is not None else ()
        kept_start.write(runner.programs, answers, noted)
    if runner.device_steps is not None and device.type == "cuda" and options.cuda_graphs:
        with stages.stage("capture"):
            capture_steps(runner.device_steps, CudaCapture(), on_stage)
    runner.arm()
    for memory in caches:
        take_pages(memory)
    if shared_code is not None:
        shared_code.settle(key, num_compiled)
    arena = host_memory(device, options.pinned_bytes)
    return LoadedModel(
        runner=runner,
        limits=limits,
        decoder=SlotWeightsDecoder(layout, arena),
        tokenizer=tokenizer,
        spec=spec,
        model_type=spec.model_type,
        dtype=options.dtype + ("+int8" if int8 else ""),
        vocab_size=runner.num_embeddings,
        eos_token_ids=eos_token_ids(model),
        target_paths=tuple(module.path for module in targets.modules),
        max_rank=options.max_rank,
        buckets=buckets,
        startup_stages=tuple(stages.done),
        arena=arena,
    )


def configure_torch(options: ModelOptions) -> None:
    """Process-wide settings of torch and its compiler; a process serves one model."""
    if options.cache_dir is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(options.cache_dir / INDUCTOR_DIR)
        drop_broken_code(options.cache_dir)
    torch.set_num_threads(options.num_threads or usable_cores())
    compiler.once_imported("settings", partial(_configure_compiler, options))


def _configure_compiler(options: ModelOptions) -> None:
    # What the compiler writes waits for all of OpenMP's threads, so on a machine where a core is busy otherwise small
    # kernels are done sooner by one; ours have helpers that nobody waits for.
    torch._inductor.config.cpp.min_chunk_size = MIN_ELEMENTS_A_THREAD
    spare_probes()
    if torch.device(options.device).type == "cuda":
        for name, value in compiler_settings(with_kernels=options.cuda_kernels).items():
            setattr(torch._inductor.config, name, value)
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
    torch._dynamo.config.accumulated_recompile_limit = MAX_GRAPHS


def _adapt(
    model: PreTrainedModel,
    targets: SlotTargets,
    limits: EngineLimits,
    options: ModelOptions,
    device: torch.device,
    with_kernels: bool,
    with_flash: bool,
    int8: Int8Weights,
    on_caches: Callable[[mmap.mmap], None],
) -> TorchRunner:
    runs_ahead = device.type == "cuda" or options.runs_ahead
    with_lists = options.cuda_kernels and slot_kernels.can_serve(device, next(model.parameters()).dtype)
    step = StepState.allocate(
        max_tokens=limits.max_step_tokens,
        num_slots=limits.num_slots,
        # One for padding; a decoding step's padding has a row for each of its tokens.
        max_segments=bucket_for(options.token_buckets, limits.max_running) + 1,
        with_varlen=runs_ahead,
        with_flash=with_flash,
        slot_rank_of_lists=limits.slot_rank if with_lists else 0,
        max_blocks=limits.blocks_for(limits.max_sequence_tokens),
        device=device,
        with_kernels=with_kernels,
    )
    plan = DevicePlan.allocate(step, limits) if runs_ahead else None
    if plan is not None:
        step = plan.step
    # Its config may say more, and its tokenizer know more.
    num_embeddings = int(model.get_input_embeddings().weight.shape[0])
    slot_linears, slot_embeddings, writer = add_slots(model, targets, limits, step, int8)
    caches = add_caches(model, limits, step, on_caches)

    def compile_module(module: nn.Module) -> None:
        if options.compile:
            compile_when_called(module, fullgraph=True, dynamic=False)

    compile_layers(model, compile_module, with_kernels=with_kernels, int8=int8)
    return TorchRunner(
        model,
        step,
        slot_linears,
        slot_embeddings,
        writer,
        caches,
        limits,
        options.token_buckets,
        device,
        num_embeddings,
        _programs(model, step, caches) if with_kernels and options.compile and plan is None else None,
        beside_steps(writer, device, options.max_rank) if device.type == "cuda" else None,
        plan,
    )


def _programs(model: PreTrainedModel, step: StepState, caches: Sequence[KvCache]) -> StepPrograms:
    fits = all(cache.k_NGD.shape[-1] % kernels.HEAD_SIZE_MULTIPLE == 0 for cache in caches)
    longest = kernels.attention_tokens(caches[0].k_NGD.dtype) if fits else 0
    layers = find_layers(model)
    programs = StepPrograms(list(layers), model.get_output_embeddings(), step, longest)
    path = next(path for path, module in model.named_modules() if module is layers)
    model.set_submodule(path, DecoderLayers(layers, programs.num_runs))
    return programs
