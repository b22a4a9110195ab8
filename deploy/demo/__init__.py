"""Demo assets: one small base model and LoRA adapters trained on it."""
