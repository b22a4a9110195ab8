"""The corpus: every way to break a checkpoint that we know, with the violation that it must end in."""

import json
import struct
from collections.abc import Callable

import numpy as np

from tests.support.checkpoints import HIDDEN, KV, RANK, VOCAB, Draft, adapter, mlx_adapter, weights_file

Q0_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
Q0_B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"

Break = Callable[[Draft], None]


def config(**fields: object) -> Break:
    return lambda draft: draft.config.update(fields)


def drop(*names: str) -> Break:
    def change(draft: Draft) -> None:
        for name in names:
            del draft.tensors[name]

    return change


def tensor(name: str, shape: tuple[int, ...], value: float = 0.5, dtype: str = "float32") -> Break:
    return lambda draft: draft.tensors.update({name: np.full(shape, value, dtype)})


def rename(old: str, new: str) -> Break:
    return lambda draft: draft.tensors.update({new: draft.tensors.pop(old)})


def poke(name: str, value: float) -> Break:
    def change(draft: Draft) -> None:
        draft.tensors[name].flat[-1] = value

    return change


def without(name: str) -> Break:
    return lambda draft: draft.without.add(name)


def pickle_only(draft: Draft) -> None:
    draft.without.add("adapter_model.safetensors")
    draft.extra_files["adapter_model.bin"] = b"\x80\x04."


def raw_config(data: bytes) -> Break:
    def change(draft: Draft) -> None:
        draft.raw_config = data

    return change


def weights(change: Callable[[bytes], bytes]) -> Break:
    def apply(draft: Draft) -> None:
        draft.raw_weights = change(weights_file(draft.tensors))

    return apply


def header(change: Callable[[dict[str, object]], None]) -> Break:
    def apply(data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        document = json.loads(data[8 : 8 + length])
        change(document)
        text = json.dumps(document).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    return weights(apply)


def transposed(draft: Draft) -> None:
    draft.tensors[Q0_A] = np.ascontiguousarray(draft.tensors[Q0_A].T)


def bfloat_infinity(draft: Draft) -> None:
    draft.tensors = {name: value.view(np.uint32) // 2**16 for name, value in draft.tensors.items()}
    draft.tensors = {name: value.astype(np.uint16) for name, value in draft.tensors.items()}
    draft.tensors[Q0_A].flat[3] = 0x7F80


def half_nan(draft: Draft) -> None:
    draft.tensors = {name: value.astype(np.float16) for name, value in draft.tensors.items()}
    draft.tensors[Q0_A].flat[3] = np.nan


def second_adapter(draft: Draft) -> None:
    draft.tensors = {
        name.replace(".weight", ".default.weight" if "layers.0" in name else ".other.weight"): value
        for name, value in draft.tensors.items()
    }


def other_sizes(draft: Draft) -> None:
    for name in list(draft.tensors):
        shape = (RANK, 32) if "lora_A" in name else (32, RANK)
        draft.tensors[name] = np.ones(shape, np.float32)


def more_layers(draft: Draft) -> None:
    for name in list(draft.tensors):
        for layer in range(2, 9):
            new = name.replace("layers.0", f"layers.{layer}").replace("layers.1", f"layers.{layer}")
            draft.tensors[new] = draft.tensors[name]


def torchtune(draft: Draft) -> None:
    def key(path: str, role: str) -> str:
        return path.removeprefix("model.").replace("self_attn", "attn") + f".lora_{role.lower()}.weight"

    draft.tensors = adapter(("q_proj", "v_proj"), key=key).tensors


def mlx(**fields: object) -> Break:
    """The same adapter as mlx-lm saves it, with fields of its config or of its parameters changed."""

    def change(draft: Draft) -> None:
        made = mlx_adapter()
        for name, value in fields.items():
            into = made.config if name in ("fine_tune_type", "future") else made.config["lora_parameters"]
            into[name] = value
        draft.config, draft.tensors, draft.extra_files = made.config, made.tensors, made.extra_files
        draft.without |= made.without

    return change


def deepspeed(draft: Draft) -> None:
    draft.tensors = {name: np.zeros(0, np.float32) for name in draft.tensors}


def fsdp(draft: Draft) -> None:
    draft.tensors = {name: value.reshape(-1) for name, value in draft.tensors.items()}


def half_compiled(draft: Draft) -> None:
    draft.tensors["_orig_mod." + Q0_A] = draft.tensors[Q0_A]


def rank_patterns(number: int, pattern: str) -> Break:
    return config(rank_pattern={pattern.format(index): RANK for index in range(number)})


DORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
HEAD = "base_model.model.lm_head.weight"
EMBED_A = "base_model.model.model.embed_tokens.lora_embedding_A"
EMBED_B = "base_model.model.model.embed_tokens.lora_embedding_B"
Q0_BIAS = Q0_B.replace("weight", "bias")


def biases(draft: Draft) -> None:
    draft.config["lora_bias"] = True
    for name in list(draft.tensors):
        if "lora_B" in name:
            shape = draft.tensors[name].shape[:1]
            draft.tensors[name.replace("weight", "bias")] = np.full(shape, 0.5, np.float32)


def embedding(draft: Draft) -> None:
    draft.config["target_modules"].append("embed_tokens")
    tensor(EMBED_A, (RANK, VOCAB))(draft)
    tensor(EMBED_B, (HIDDEN, RANK))(draft)


def both(*changes: Break) -> Break:
    def apply(draft: Draft) -> None:
        for change in changes:
            change(draft)

    return apply


CORPUS: dict[str, tuple[Break, str]] = {
    # The files.
    "no config": (without("adapter_config.json"), "MISSING_FILE"),
    "no weights": (without("adapter_model.safetensors"), "MISSING_FILE"),
    "a pickle instead of weights": (pickle_only, "UNSUPPORTED_PICKLE"),
    "an empty weights file": (weights(lambda _: b""), "FILE_TRUNCATED"),
    "the last byte missing": (weights(lambda data: data[:-1]), "FILE_TRUNCATED"),
    "half of the file": (weights(lambda data: data[: len(data) // 2]), "FILE_TRUNCATED"),
    "cut inside of the header": (weights(lambda data: data[:100]), "FILE_TRUNCATED"),
    "a byte too many": (weights(lambda data: data + b"\0"), "TRAILING_BYTES"),
    "an HTML error page": (weights(lambda _: b"<!doctype html><html>not found</html>"), "HEADER_TOO_LARGE"),
    "a git-lfs pointer": (
        weights(lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"), "HEADER_TOO_LARGE"),
    "a header of garbage": (weights(lambda data: data[:8] + b"x" * (len(data) - 8)), "HEADER_NOT_JSON"),
    "a tensor entry of null": (header(lambda doc: doc.update({Q0_A: None})), "BAD_TENSOR_ENTRY"),
    "metadata with a number": (header(lambda doc: doc.update({"__metadata__": {"a": 1}})), "BAD_METADATA"),
    "a tensor of 2^80 elements": (
        header(lambda doc: doc.update({Q0_A: {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 128]}})),
        "SHAPE_OVERFLOW"),
    "a tensor on another's bytes": (
        header(lambda doc: doc.update({Q0_B: doc[Q0_A]})), "OFFSET_OVERLAP"),
    # The config's form.
    "an empty config": (raw_config(b""), "CONFIG_NOT_JSON"),
    "a config that is a list": (raw_config(b"[]"), "CONFIG_NOT_JSON"),
    "a config with a key twice": (raw_config(b'{"r": 4, "r": 8}'), "DUPLICATE_KEY"),
    "a config with NaN": (raw_config(b'{"r": 4, "lora_alpha": NaN}'), "CONFIG_NOT_JSON"),
    "a config nested deeply": (raw_config(b'{"a":' * 50_000 + b"1" + b"}" * 50_000), "CONFIG_NOT_JSON"),
    "a config in UTF-16": (raw_config('{"r": 4}'.encode("utf-16")), "CONFIG_NOT_JSON"),
    "a config of 2 MiB": (raw_config(b" " * 2**21), "FILE_TOO_LARGE"),
    "an alpha of 1e400": (raw_config(b'{"r": 4, "lora_alpha": 1e400}'), "CONFIG_NOT_JSON"),
    "rank 0": (config(r=0), "BAD_CONFIG_VALUE"),
    "a negative rank": (config(r=-4), "BAD_CONFIG_VALUE"),
    "a rank that is text": (config(r="4"), "BAD_CONFIG_VALUE"),
    "a rank that is true": (config(r=True), "BAD_CONFIG_VALUE"),
    "a config without a type": (lambda draft: draft.config.pop("peft_type"), "BAD_CONFIG_VALUE"),
    "an alpha that is text": (config(lora_alpha="8"), "BAD_CONFIG_VALUE"),
    "rslora that is text": (config(use_rslora="no"), "BAD_CONFIG_VALUE"),
    "a bias on B that is text": (config(lora_bias="no"), "BAD_CONFIG_VALUE"),
    "tying that is a number": (config(ensure_weight_tying=1), "BAD_CONFIG_VALUE"),
    "targets that are numbers": (config(target_modules=[1, 2]), "BAD_CONFIG_VALUE"),
    "targets that are an object": (config(target_modules={"q_proj": 1}), "BAD_CONFIG_VALUE"),
    "a rank pattern that is a list": (config(rank_pattern=["q_proj"]), "BAD_CONFIG_VALUE"),
    "a rank pattern of rank 0": (config(rank_pattern={"q_proj": 0}), "BAD_CONFIG_VALUE"),
    "an alpha pattern of text": (config(alpha_pattern={"q_proj": "x"}), "BAD_CONFIG_VALUE"),
    "layers that are text": (config(layers_to_transform="0"), "BAD_CONFIG_VALUE"),
    "layers with a regex": (config(target_modules=".*q_proj", layers_to_transform=[0]), "BAD_CONFIG_VALUE"),
    "a broken regex": (config(target_modules="(q_proj"), "UNSUPPORTED_PATTERN"),
    "a regex with a back-reference": (config(target_modules=r"(.*)\.(q_proj)\2"), "MODULE_NOT_TARGETED"),
    "a regex with look-ahead": (config(target_modules=r"(?!.*mlp).*proj"), "MODULE_MISSING"),
    "a regex that takes for ever": (config(target_modules=r"(?=((\w+|\.)+)+!).*q_proj"), "UNSUPPORTED_PATTERN"),
    "a rank pattern that takes for ever": (
        config(rank_pattern={r"(?=((\w+|\.)+)+!)q_proj": RANK}), "UNSUPPORTED_PATTERN"),
    "more look-aheads than are tried": (
        config(rank_pattern={f"(?=q)q_proj{index}": RANK for index in range(9)}), "UNSUPPORTED_PATTERN"),
    "a regex that explodes when compiled": (config(rank_pattern={"((a{999}){999}){999}": 4}), "UNSUPPORTED_PATTERN"),
    "a thousand regexes": (rank_patterns(1000, ".*q{}"), "UNSUPPORTED_PATTERN"),
    "a thousand names that no table can hold": (
        config(rank_pattern={f"{index:010b}".replace("1", "."): RANK for index in range(1000)}), "UNSUPPORTED_PATTERN"),
    "more names than any model has modules": (rank_patterns(20_001, "q{}"), "BAD_CONFIG_VALUE"),
    "a repeat that Python and RE2 read differently": (config(target_modules=".*q_proj{,2}"), "MODULE_NOT_TARGETED"),
    "a set that Python may read differently one day": (config(target_modules="[a&&b].*"), "UNSUPPORTED_PATTERN"),
    "layers that are false": (config(layers_to_transform=False), "BAD_CONFIG_VALUE"),
    "layers that are an object": (config(layers_to_transform={}), "BAD_CONFIG_VALUE"),
    "mlx-lm's DoRA": (mlx(fine_tune_type="dora"), "UNSUPPORTED_CONFIG"),
    "mlx-lm's full fine-tune": (mlx(fine_tune_type="full"), "UNSUPPORTED_CONFIG"),
    "mlx-lm without a rank": (mlx(rank=None), "BAD_CONFIG_VALUE"),
    "mlx-lm with an infinite factor": (mlx(scale=1e308), "BAD_CONFIG_VALUE"),
    "mlx-lm with an alpha that may scale or not": (mlx(alpha=RANK * 2), "UNSUPPORTED_CONFIG"),
    "mlx-lm with an alpha of zero": (mlx(alpha=0), "UNSUPPORTED_CONFIG"),
    "mlx-lm with another rank": (mlx(rank=RANK * 2), "RANK_MISMATCH"),
    "mlx-lm with a parameter from the future": (mlx(quantum=1), "UNKNOWN_CONFIG_FIELD"),
    "mlx-lm with a field from the future": (mlx(future=1), "UNKNOWN_CONFIG_FIELD"),
    "an enormous regex": (config(target_modules="q" * 100_000), "UNSUPPORTED_PATTERN"),
    # What cannot be served exactly.
    "another kind of adapter": (config(peft_type="LOHA"), "UNSUPPORTED_CONFIG"),
    "a classifier": (config(task_type="SEQ_CLS"), "UNSUPPORTED_CONFIG"),
    "PiSSA, not converted": (config(init_lora_weights="pissa"), "UNSUPPORTED_CONFIG"),
    "PiSSA by iterations": (config(init_lora_weights="pissa_niter_16"), "UNSUPPORTED_CONFIG"),
    "OLoRA": (config(init_lora_weights="olora"), "UNSUPPORTED_CONFIG"),
    "CorDA": (config(init_lora_weights="corda"), "UNSUPPORTED_CONFIG"),
    "LoRA-GA": (config(init_lora_weights="lora_ga"), "UNSUPPORTED_CONFIG"),
    "LoftQ": (config(init_lora_weights="loftq"), "UNSUPPORTED_CONFIG"),
    "an initialisation nobody knows": (config(init_lora_weights="nova"), "UNSUPPORTED_CONFIG"),
    "DoRA by config": (config(use_dora=True), "UNSUPPORTED_CONFIG"),
    "DoRA by tensor": (tensor(DORA, (HIDDEN,)), "UNSUPPORTED_TENSOR"),
    "QALoRA": (config(use_qalora=True), "UNSUPPORTED_CONFIG"),
    "block-diagonal": (config(use_bdlora={"nblocks": 2}), "UNSUPPORTED_CONFIG"),
    "biases of the base": (config(bias="all"), "UNSUPPORTED_CONFIG"),
    "modules_to_save by config": (config(modules_to_save=["lm_head"]), "UNSUPPORTED_CONFIG"),
    "modules_to_save by tensor": (tensor(HEAD, (16, HIDDEN)), "UNSUPPORTED_TENSOR"),
    "trained tokens": (config(trainable_token_indices=[1, 2]), "UNSUPPORTED_CONFIG"),
    "the head's weight beside its adapter": (
        tensor(HEAD.replace("weight", "base_layer.weight"), (VOCAB, HIDDEN)), "UNSUPPORTED_TENSOR"),
    "an adapted embedding with biases elsewhere": (both(biases, embedding), "UNSUPPORTED_CONFIG"),
    "adapted experts": (config(target_parameters=["experts.gate_up_proj"]), "UNSUPPORTED_CONFIG"),
    "activated LoRA": (config(alora_invocation_tokens=[1]), "UNSUPPORTED_CONFIG"),
    "replicated layers": (config(layer_replication=[[0, 2]]), "UNSUPPORTED_CONFIG"),
    "Monte Carlo LoRA": (config(monteclora_config={"num_samples": 4}), "UNSUPPORTED_CONFIG"),
    "Arrow": (config(arrow_config={"top_k": 3}), "UNSUPPORTED_CONFIG"),
    "KaSA": (config(kasa_config={"beta": 1.0}), "UNSUPPORTED_CONFIG"),
    "a field from the future": (config(use_quantum=True), "UNKNOWN_CONFIG_FIELD"),
    "torchtune's own layout": (torchtune, "UNSUPPORTED_LAYOUT"),
    # The tensors.
    "no tensor at all": (lambda draft: draft.tensors.clear(), "MODULE_MISSING"),
    "A without B": (drop(Q0_B), "MISSING_TENSOR"),
    "B without A": (drop(Q0_A), "MISSING_TENSOR"),
    "one layer missing": (drop(Q0_A, Q0_B), "MODULE_MISSING"),
    "all linears, of which there are two": (config(target_modules="all-linear"), "MODULE_MISSING"),
    "the defaults of PEFT, of which one is cut off": (
        both(config(target_modules=None), drop(Q0_A, Q0_B)), "MODULE_MISSING"),
    "a module that the config does not target": (config(target_modules=["q_proj"]), "MODULE_NOT_TARGETED"),
    "a module that the config excludes": (config(exclude_modules=["v_proj"]), "MODULE_NOT_TARGETED"),
    "a layer that the config leaves out": (config(layers_to_transform=[1]), "MODULE_NOT_TARGETED"),
    "a tensor nobody asked for": (tensor("optimizer.step", (1,)), "UNSUPPORTED_TENSOR"),
    "an adapter of an adapter's module": (
        tensor("base_model.model.model.layers.0.self_attn.x_proj.lora_A.weight", (RANK, HIDDEN)), "UNKNOWN_MODULE"),
    "a vision tower's module": (
        tensor("base_model.model.vision_tower.layers.0.q_proj.lora_A.weight", (RANK, HIDDEN)), "UNKNOWN_MODULE"),
    "the same tensor under two names": (
        tensor(Q0_A.replace("base_model.model.", ""), (RANK, HIDDEN)), "DUPLICATE_TENSOR"),
    "two adapters in one file": (second_adapter, "MIXED_ADAPTERS"),
    "A transposed": (transposed, "SHAPE_MISMATCH"),
    "a rank unlike the config's": (config(r=8), "RANK_MISMATCH"),
    "a rank unlike its pattern": (config(rank_pattern={"q_proj": 2}), "RANK_MISMATCH"),
    "A and B of different ranks": (tensor(Q0_B, (HIDDEN, RANK + 1)), "RANK_MISMATCH"),
    "a wrong number of inputs": (tensor(Q0_A, (RANK, HIDDEN + 1)), "SHAPE_MISMATCH"),
    "a wrong number of outputs": (tensor(Q0_B, (KV, RANK)), "SHAPE_MISMATCH"),
    "a flattened tensor": (tensor(Q0_A, (RANK * HIDDEN,)), "BAD_SHAPE"),
    "DeepSpeed's empty shards": (deepspeed, "BAD_SHAPE"),
    "FSDP's flattened parameters": (fsdp, "BAD_SHAPE"),
    "a tensor twice, once as compiled": (half_compiled, "DUPLICATE_TENSOR"),
    "an empty shard": (tensor(Q0_A, (0,)), "BAD_SHAPE"),
    "an empty matrix": (tensor(Q0_A, (0, HIDDEN)), "BAD_SHAPE"),
    "a convolution's weight": (tensor(Q0_A, (RANK, HIDDEN, 1, 1)), "BAD_SHAPE"),
    "no bias where the config has one": (config(lora_bias=True), "MISSING_TENSOR"),
    "one bias missing": (both(biases, drop(Q0_BIAS)), "MISSING_TENSOR"),
    "a bias where the config has none": (tensor(Q0_BIAS, (HIDDEN,)), "BIAS_NOT_CONFIGURED"),
    "a bias of another size": (both(biases, tensor(Q0_BIAS, (HIDDEN + 1,))), "SHAPE_MISMATCH"),
    "a bias that is a matrix": (both(biases, tensor(Q0_BIAS, (HIDDEN, 1))), "BAD_SHAPE"),
    "a bias with a NaN": (both(biases, poke(Q0_BIAS, np.nan)), "NOT_FINITE"),
    "a bias without A and B": (both(biases, drop(Q0_A, Q0_B)), "MISSING_TENSOR"),
    "an embedding's A without B": (both(embedding, drop(EMBED_B)), "MISSING_TENSOR"),
    "an embedding that the config does not target": (
        both(embedding, config(target_modules=["q_proj", "v_proj"])), "MODULE_NOT_TARGETED"),
    "an embedding of another vocabulary": (both(embedding, tensor(EMBED_A, (RANK, VOCAB + 1))), "SHAPE_MISMATCH"),
    "an embedding's B transposed": (both(embedding, tensor(EMBED_B, (RANK, HIDDEN))), "SHAPE_MISMATCH"),
    "a linear's parts on an embedding": (
        both(embedding, tensor(EMBED_A.replace("embedding_A", "A.weight"), (RANK, VOCAB))), "UNSUPPORTED_MODULE"),
    "an embedding's parts on a linear": (
        tensor(Q0_A.replace("lora_A.weight", "lora_embedding_A"), (RANK, HIDDEN)), "UNSUPPORTED_MODULE"),
    "doubles": (tensor(Q0_A, (RANK, HIDDEN), dtype="float64"), "BAD_DTYPE"),
    "integers": (tensor(Q0_A, (RANK, HIDDEN), dtype="int64"), "BAD_DTYPE"),
    "a NaN": (poke(Q0_A, np.nan), "NOT_FINITE"),
    "an infinity": (poke(Q0_B, np.inf), "NOT_FINITE"),
    "a negative infinity": (poke(Q0_B, -np.inf), "NOT_FINITE"),
    "an infinity in bfloat16": (bfloat_infinity, "NOT_FINITE"),
    "a NaN in float16": (half_nan, "NOT_FINITE"),
    "a base model of other sizes": (other_sizes, "BASE_MODEL_MISMATCH"),
    "a base model with more layers": (more_layers, "BASE_MODEL_MISMATCH"),
}  # fmt: skip
