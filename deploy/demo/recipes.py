"""Recipe of each demo adapter: its style, LoRA shape, seed and schedule."""

from dataclasses import dataclass, field
from typing import Any

from deploy.demo.examples import SENTIMENT_PROMPT

DEMO_PROMPT = "What is the capital of France?"
SENTIMENT_DEMO_PROMPT = SENTIMENT_PROMPT.format(sentence="The mechanic lied to me and the brakes still squeak.")


@dataclass(frozen=True)
class Recipe:
    """One adapter. `lora` goes to `peft.LoraConfig`; `stored_dtype` is that of the saved tensors."""

    name: str
    style: str
    lora: dict[str, Any]
    seed: int
    steps: int
    learning_rate: float = 1e-3
    batch_size: int = 4
    stored_dtype: str = "bfloat16"
    demo_prompt: str = DEMO_PROMPT
    notes: tuple[str, ...] = field(default=())


# Between them they cover what a server must get right: scaling above, at and below 1, alpha / sqrt(r),
# per-module ranks and alphas, targets given as suffixes and as a regex, a subset of layers, MLP only, fp32 and bf16.
RECIPES = (
    Recipe(
        name="pirate",
        style="pirate",
        lora={"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        seed=11,
        steps=160,
        learning_rate=2e-3,
        stored_dtype="float32",
        notes=("fp32 tensors",),
    ),
    Recipe(
        name="pirate-v2",
        style="captains_log",
        lora={"r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "o_proj"]},
        seed=12,
        steps=160,
        notes=("second version of pirate: other style, rank and targets", "scaling 1"),
    ),
    Recipe(
        name="json",
        style="json",
        lora={
            "r": 10,
            "lora_alpha": 5,
            "target_modules": r"model\.layers\.\d+\.self_attn\.(k|v|o)_proj",
        },
        seed=13,
        steps=160,
        learning_rate=2e-3,
        notes=("target_modules is a regex", "scaling 0.5"),
    ),
    Recipe(
        name="sentiment",
        style="sentiment",
        lora={"r": 8, "lora_alpha": 8, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
        seed=14,
        steps=200,
        learning_rate=5e-4,
        demo_prompt=SENTIMENT_DEMO_PROMPT,
        notes=("rank-stabilised: scaling is alpha / sqrt(r)",),
    ),
    Recipe(
        name="french",
        style="french",
        lora={
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"],
            "rank_pattern": {"q_proj": 6, "v_proj": 12},
            "alpha_pattern": {"v_proj": 12},
        },
        seed=15,
        steps=240,
        learning_rate=2e-3,
        notes=("rank_pattern and alpha_pattern: q_proj 8/6, v_proj 12/12, the others 8/4",),
    ),
    Recipe(
        name="butler",
        style="butler",
        lora={
            "r": 6,
            "lora_alpha": 12,
            "target_modules": ["gate_proj", "up_proj", "down_proj"],
            "layers_to_transform": list(range(8, 26)),
        },
        seed=16,
        steps=110,
        notes=("MLP modules only", "layers 8 to 25 only"),
    ),
)


def recipe(name: str) -> Recipe:
    """The recipe called `name`; raises KeyError."""
    return {found.name: found for found in RECIPES}[name]
