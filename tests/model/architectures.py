"""Tiny random models of many architectures, with whatever sets them apart turned up until it shows."""

from dataclasses import dataclass
from typing import Any

import transformers

from tests.support.tiny_models import VOCAB, Architecture

WINDOW = 8
"""Shorter than the prompts, so that a window that is ignored shows."""
_PLAIN = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
_FULL = {name: size for name, size in _PLAIN.items() if name != "num_key_value_heads"}
_HEADS_OF_8 = {**_PLAIN, "head_dim": 8}
_ALTERNATING = {**_HEADS_OF_8, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
_VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
_QWEN_VISION = {"depth": 2, "num_heads": 2, "patch_size": 14}
_QWEN_VISION_2 = {**_QWEN_VISION, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32}
_THREE_POSITIONS = {
    **_HEADS_OF_8, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
}  # fmt: skip
_OTHERS = r".*(vision|visual|projector|connector|merger).*"
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


@dataclass(frozen=True)
class Case:
    """One architecture."""

    architecture: Architecture
    notes: str = ""
    refused: str = ""
    """What the worker says at its start, as a regular expression; empty for models that it serves."""


def _served(config_class: type[Any], config: dict[str, Any], notes: str = "", **names: str) -> Case:
    return Case(Architecture(config_class, config, **names), notes)


def _refused(config_class: type[Any], config: dict[str, Any], why: str, notes: str) -> Case:
    return Case(Architecture(config_class, config), notes, why)


def _text_part(
    config_class: type[Any], text: dict[str, Any], vision: dict[str, Any], notes: str, refused: str = "", **more: Any
) -> Case:
    made = {"text_config": text, "vision_config": vision, **more}
    return Case(Architecture(config_class, made, others=_OTHERS), notes, refused)


CASES = {
    "llama": _served(transformers.LlamaConfig, _PLAIN),
    "mistral": _served(transformers.MistralConfig, {**_PLAIN, "sliding_window": WINDOW}, "sliding window"),
    "qwen2": _served(transformers.Qwen2Config, _PLAIN, "biases on q, k, v"),
    "qwen3": _served(transformers.Qwen3Config, _HEADS_OF_8, "norms on q and k"),
    "gemma2": _served(
        transformers.Gemma2Config,
        {**_ALTERNATING, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8},
        "capped scores and logits, alternating windows; no CPU kernels for its attention",
    ),
    "gemma3_text": _served(transformers.Gemma3TextConfig, _ALTERNATING, "alternating windows, two rotary bases"),
    "phi3": _served(
        transformers.Phi3Config, {**_PLAIN, "pad_token_id": 0}, "fused q/k/v and gate/up; "
        "with longrope up to its first context length", attention="qkv_proj", mlp="gate_up_proj",
    ),
    "olmo2": _served(transformers.Olmo2Config, _PLAIN, "norms after each part"),
    "gpt_neox": _served(
        transformers.GPTNeoXConfig, _FULL, "fused q/k/v", attention="query_key_value", mlp="dense_h_to_4h",
        embedding="embed_in",
    ),
    "smollm3": _served(
        transformers.SmolLM3Config, {**_PLAIN, "no_rope_layers": [1, 0], "pad_token_id": 0}, "layers without positions"
    ),
    "mixtral": _served(
        transformers.MixtralConfig, {**_PLAIN, "num_local_experts": 4}, "experts and their router have no slots"
    ),
    "qwen3_moe": _served(
        transformers.Qwen3MoeConfig, {**_HEADS_OF_8, **_EXPERTS}, "experts and their router have no slots"
    ),
    "olmoe": _served(
        transformers.OlmoeConfig, {**_PLAIN, "num_experts": 4, "num_experts_per_tok": 2},
        "experts and their router have no slots",
    ),
    "gpt2": _served(
        transformers.GPT2Config, {**_GPT2, "n_positions": 64}, "learned positions, transposed linears",
        attention="c_attn", mlp="c_fc", embedding="wte",
    ),
    "gpt_bigcode": _served(
        transformers.GPTBigCodeConfig, {**_GPT2, "n_positions": 64}, "one key head", attention="c_attn", mlp="c_fc",
        embedding="wte",
    ),
    "opt": _served(
        transformers.OPTConfig,
        {
            "vocab_size": VOCAB, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 64, "word_embed_proj_dim": 32, "init_std": 0.3,
        },
        "learned positions", mlp="fc1",
    ),
    "phi": _served(transformers.PhiConfig, _FULL, "attention and MLP side by side", mlp="fc1"),
    "stablelm": _served(transformers.StableLmConfig, _PLAIN, "partial rotary positions"),
    "cohere": _served(transformers.CohereConfig, {**_PLAIN, "logit_scale": 0.5}, "scaled logits, tied head"),
    "granite": _served(transformers.GraniteConfig, _PLAIN, "scaled residuals"),
    "starcoder2": _served(transformers.Starcoder2Config, {**_PLAIN, "sliding_window": WINDOW}, "sliding window",
                          mlp="c_fc"),
    "glm4": _served(
        transformers.Glm4Config, {**_HEADS_OF_8, "pad_token_id": 0}, "fused gate/up", mlp="gate_up_proj"
    ),
    "exaone4": _served(transformers.Exaone4Config, _ALTERNATING, "alternating windows"),
    "nemotron": _served(transformers.NemotronConfig, _PLAIN, "squared ReLU"),
    "gemma3": _text_part(
        transformers.Gemma3Config, {**_ALTERNATING, "model_type": "gemma3_text"},
        {**_VISION, "model_type": "siglip_vision_model"}, "text part", mm_tokens_per_image=4, image_token_index=60,
        boi_token_index=61, eoi_token_index=62,
    ),
    "mistral3": _text_part(
        transformers.Mistral3Config, {**_HEADS_OF_8, "model_type": "mistral", "sliding_window": None},
        {**_VISION, "model_type": "pixtral"}, "text part", image_token_index=60,
    ),
    "llava": _text_part(
        transformers.LlavaConfig, {**_PLAIN, "model_type": "llama"}, {**_VISION, "model_type": "clip_vision_model"},
        "text part", image_token_index=60,
    ),
    "llava_next": _text_part(
        transformers.LlavaNextConfig, {**_PLAIN, "model_type": "mistral", "sliding_window": None},
        {**_VISION, "model_type": "clip_vision_model"}, "text part", image_token_index=60,
    ),
    "llava_onevision": _text_part(
        transformers.LlavaOnevisionConfig, {**_PLAIN, "model_type": "qwen2"},
        {**_VISION, "model_type": "siglip_vision_model"}, "text part", image_token_index=60, video_token_index=61,
    ),
    "internvl": _text_part(
        transformers.InternVLConfig, {**_PLAIN, "model_type": "qwen2"},
        {**_VISION, "model_type": "internvl_vision", "image_size": [28, 28], "patch_size": [14, 14]}, "text part",
        image_token_id=60,
    ),
    "idefics3": _text_part(
        transformers.Idefics3Config, {**_PLAIN, "model_type": "llama", "pad_token_id": 0}, _VISION, "text part",
        image_token_id=60, pad_token_id=0,
    ),
    "smolvlm": _text_part(
        transformers.SmolVLMConfig, {**_PLAIN, "model_type": "llama", "pad_token_id": 0}, _VISION, "text part",
        image_token_id=60, pad_token_id=0,
    ),
    "qwen2_vl": _text_part(
        transformers.Qwen2VLConfig, _THREE_POSITIONS,
        {**_QWEN_VISION, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
        "text part, whose three positions are one", image_token_id=60, video_token_id=61, vision_start_token_id=62,
        vision_end_token_id=63,
    ),
    "qwen2_5_vl": _text_part(
        transformers.Qwen2_5_VLConfig, _THREE_POSITIONS,
        {**_QWEN_VISION_2, "fullatt_block_indexes": [1]},
        "text part, whose three positions are one", image_token_id=60, video_token_id=61, vision_start_token_id=62,
        vision_end_token_id=63,
    ),
    "qwen3_vl": _text_part(
        transformers.Qwen3VLConfig, _THREE_POSITIONS,
        {**_QWEN_VISION_2, "deepstack_visual_indexes": [0]},
        "text part, whose three positions are one", image_token_id=60, video_token_id=61, vision_start_token_id=62,
        vision_end_token_id=63,
    ),
    "paligemma": _text_part(
        transformers.PaliGemmaConfig, {**_HEADS_OF_8, "model_type": "gemma"},
        {**_VISION, "model_type": "siglip_vision_model"}, "tokens that see those after them", projection_dim=32,
        image_token_index=60, refused="the worker's logits .*GemmaAttention",
    ),
    "aya_vision": _text_part(
        transformers.AyaVisionConfig, {**_ALTERNATING, "model_type": "cohere2"},
        {**_VISION, "model_type": "siglip_vision_model"}, "logits that the whole model does not scale",
        image_token_index=60, refused="its text part alone answers otherwise than the whole model",
    ),
    "gpt_oss": _refused(
        transformers.GptOssConfig,
        {**_ALTERNATING, "num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0}},
        r"model\.layers\.0\.self_attn \(GptOssAttention\) passes s_aux", "attention sinks",
    ),
    "deepseek_v3": _refused(
        transformers.DeepseekV3Config,
        {
            **_FULL, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
            "topk_group": 1, "moe_intermediate_size": 24, "first_k_dense_replace": 1, "n_shared_experts": 1,
        },
        "keys .* and values .* of different shapes", "keys and values of different sizes",
    ),
    "diffllama": _refused(transformers.DiffLlamaConfig, _PLAIN, "4 of 2 layers", "two attentions a layer"),
    "recurrent_gemma": _refused(
        transformers.RecurrentGemmaConfig, {**_PLAIN, "num_hidden_layers": 3, "lru_width": 32},
        "1 of 3 layers", "recurrent layers",
    ),
    "falcon": _refused(transformers.FalconConfig, {**_PLAIN, "alibi": True}, "0 of 2 layers", "attention of its own"),
    "codegen": _refused(
        transformers.CodeGenConfig, {**_GPT2, "n_positions": 64, "rotary_dim": 4}, "0 of 2 layers",
        "attention of its own",
    ),
    "gptj": _refused(
        transformers.GPTJConfig, {**_GPT2, "n_positions": 64, "rotary_dim": 4}, "0 of 2 layers", "attention of its own"
    ),
    "bloom": _refused(
        transformers.BloomConfig, {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        "no max_position_embeddings", "ALiBi",
    ),
    "mpt": _refused(
        transformers.MptConfig, {"vocab_size": VOCAB, "d_model": 32, "n_layers": 2, "n_heads": 4},
        "no max_position_embeddings", "ALiBi",
    ),
    "mamba": _refused(
        transformers.MambaConfig, {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
        "no max_position_embeddings", "no attention",
    ),
}  # fmt: skip
