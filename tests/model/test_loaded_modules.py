"""The modules that rules say are loaded are those that transformers loads, for every architecture that it has."""

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from hotslot.formats.base_spec import Absence
from hotslot.formats.loaded_modules import text_part
from tests.model.architectures import CASES
from tests.model.loaded_oracle import Checkpoint, small, wrong
from tests.support.tiny_models import auto_class

NO_DECODERS = frozenset({
    "bert", "bert-generation", "big_bird", "blip-2", "camembert", "data2vec-text", "electra", "ernie", "git",
    "megatron-bert", "prophetnet", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm",
    "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod",
})  # fmt: skip
"""Types of encoders and of decoders beside one, whose text part names do not tell."""
OTHER_NAMES = frozenset({
    "blt", "cpmant", "ctrl", "deepseek_v4", "hrm_text", "inkling2_text", "openai-gpt", "phi4_multimodal", "rwkv",
})  # fmt: skip
"""Types whose checkpoints call embedding, head or layers as no other does, or whose text model has the other parts
inside; none of them can be served."""
NOT_BUILT = frozenset({
    "cohere_compass_text", "dbrx", "dots1", "gemma3n", "gemma3n_text", "gemma4_assistant", "gemma4_unified_assistant",
    "gpt_neo", "hunyuan_v1_dense", "hunyuan_v1_moe", "lfm2_moe", "ministral", "musicgen", "musicgen_melody", "nemotron",
    "qwen4_exp", "qwen4_exp_text", "reformer", "zamba", "zamba2",
})  # fmt: skip
"""Types whose configs are not complete by default, or ask for further packages."""
FOREIGN = {
    "layer beyond": ("{prefix}{list}.{count}.self_attn.q_proj", Absence.BEYOND),
    "multi-token prediction": ("mtp.layers.0.self_attn.q_proj", Absence.OTHER_PART),
    "its projection": ("mtp.fc", Absence.OTHER_PART),
    "vision tower": ("vision_tower.encoder.layers.0.self_attn.q_proj", Absence.OTHER_PART),
    "vision tower inside": ("{prefix}vision_tower.encoder.layers.0.self_attn.q_proj", Absence.OTHER_PART),
    "projector": ("multi_modal_projector.linear_1", Absence.OTHER_PART),
    "second head": ("mtp.lm_head", Absence.OTHER_PART),
    "expert": ("{prefix}{list}.0.mlp.experts.3.gate_proj", Absence.EXPERT),
    "router": ("{prefix}{list}.0.mlp.gate", Absence.ROUTER),
}
LAYER_LISTS = {"gpt2": "h", "gpt_bigcode": "h"}
SERVED = {model_type: case for model_type, case in CASES.items() if not case.refused}


def made(model_type: str) -> Checkpoint:
    architecture = CASES[model_type].architecture
    config = architecture.config_class(**architecture.config)
    return Checkpoint.of(config, auto_class(config))


@pytest.mark.parametrize("model_type", SERVED)
def test_linears_of_a_served_type_are_loaded_exactly_where_the_rules_say_so(model_type: str) -> None:
    checkpoint = made(model_type)
    spec = checkpoint.spec()
    assert spec.digest == checkpoint.spec().digest
    assert any(module.absence is None for module in spec.modules)
    assert wrong(spec, checkpoint.loaded(spec)) == []


@pytest.mark.parametrize("model_type", SERVED)
def test_what_a_checkpoint_holds_beyond_its_model_is_told_from_it(model_type: str) -> None:
    checkpoint = made(model_type)
    part = text_part(checkpoint.spec().modules)
    assert part is not None
    prefix, layers = part.prefix, LAYER_LISTS.get(model_type, "layers")
    count = checkpoint.model.config.get_text_config().num_hidden_layers
    names = {name: path.format(prefix=prefix, list=layers, count=count) for name, (path, _) in FOREIGN.items()}
    grown = checkpoint.with_more({f"{path}.weight": (7, 5) for path in names.values()})
    spec = grown.spec()
    assert wrong(spec, grown.loaded(spec)) == []
    found = spec.by_path()
    for name, path in names.items():
        assert found[path].absence is FOREIGN[name][1], name
    assert spec.head is not None
    assert spec.head.path in ("lm_head", "embed_out", "language_model.lm_head")


@pytest.mark.parametrize("config_class", MODEL_FOR_CAUSAL_LM_MAPPING, ids=lambda it: it.model_type)
def test_the_rules_hold_for_all_causal_language_models(config_class: type[transformers.PretrainedConfig]) -> None:
    model_type = config_class.model_type
    if model_type in NO_DECODERS | OTHER_NAMES | NOT_BUILT:
        pytest.skip("no decoder-only model with names as others have them, or it cannot be made without settings")
    checkpoint = Checkpoint.of(small(config_class))
    spec = checkpoint.spec()
    assert wrong(spec, checkpoint.loaded(spec)) == []
