"""Paths of the gateway that need a key, each with a body that it takes."""

PATHS: dict[tuple[str, str], dict[str, object] | None] = {
    ("GET", "/v1/models"): None,
    ("GET", "/v1/models/{model:path}"): None,
    ("POST", "/v1/completions"): {"model": "alice-bot", "prompt": "hello", "max_tokens": 2},
    ("POST", "/v1/chat/completions"): {
        "model": "alice-bot",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 2,
    },
    ("POST", "/v1/load_lora_adapter"): {"lora_name": "alice-bot", "lora_path": "alice-bot"},
    ("POST", "/v1/unload_lora_adapter"): {"lora_name": "alice-bot"},
    ("GET", "/ui/state"): None,
    ("POST", "/tokenize"): {"prompt": "hello"},
    ("POST", "/detokenize"): {"tokens": [104, 105]},
}
PUBLIC = frozenset(
    ("GET", path)
    for path in (
        "/health",
        "/health/live",
        "/metrics",
        "/version",
        "/openapi.json",
        "/docs",
        "/ui",
        "/ui/files/{name}",
    )
)
"""Paths for all, which say nothing of a tenant."""
