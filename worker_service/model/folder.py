"""Folder of a base model: as it is, or a snapshot from the Hugging Face Hub. Without torch."""

from pathlib import Path

from hotslot.base_fetch import fetch_base_model, local_folder


def model_folder(model: str) -> Path:
    """The folder of a model that is given as a folder or as `org/name`; downloads what is not there yet.

    Raises as `local_folder` and `fetch_base_model`.
    """
    return local_folder(model) or fetch_base_model(model, with_companions=True)
