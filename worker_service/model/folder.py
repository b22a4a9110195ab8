"""Folder of a base model: as it is, or a snapshot from the Hugging Face Hub. Without torch."""

from pathlib import Path

from hotslot.base_fetch import fetch_base_model


def model_folder(model: str) -> Path:
    """The folder of a model that is given as a folder or as `org/name`; downloads what is not there yet.

    Raises as `fetch_base_model`.
    """
    folder = Path(model)
    return folder if folder.is_dir() else fetch_base_model(model, with_companions=True)
