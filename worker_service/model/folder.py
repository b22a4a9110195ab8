"""Where a base model's files are: a folder as it is, or a snapshot from the Hugging Face Hub. Without torch."""

from pathlib import Path

from huggingface_hub import snapshot_download

MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""What a model repository is asked for; never pickles, never code."""


def model_folder(model: str) -> Path:
    """The folder of a model that is given as a folder or as `org/name`; downloads what is not there yet."""
    folder = Path(model)
    return folder if folder.is_dir() else Path(snapshot_download(model, allow_patterns=MODEL_FILES))
