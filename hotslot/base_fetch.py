"""Fetches a base model from the Hugging Face Hub: the weights that it is loaded from, once, and what lies beside them.

Repositories hold the same weights in several layouts (`consolidated.*`, `original/`, other variants); only those that
the index names, or the single file, are taken. Workers and `hotslot base add` share this.
"""

import errno
import glob
from pathlib import Path
from typing import Any

from hotslot.errors import InvalidRequestError, SourceNotFoundError, SourceUnavailableError
from hotslot.formats.base_model import INDEX_FILE, SINGLE_FILE, refuse_quantised, weights_files

COMPANIONS = ("*.json", "*.model", "*.txt", "*.jinja")
"""Tokenizer, templates and configs, in the repository's own folder; never pickles, never code."""
_LOCAL_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO})
"""Errors of this machine's disk, in contrast to those of the network."""


def local_folder(model: str) -> Path | None:
    """The folder that a model's name is; None for a repository's name. Raises InvalidRequestError for neither."""
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.exists():
        problem = f"{model} is a file; name the folder that it lies in, with config.json and the tokenizer"
        raise InvalidRequestError([], problem)
    if model.startswith(("/", ".", "~")) or model.endswith("/") or model.count("/") > 1 or "\\" in model:
        raise InvalidRequestError([], f"no such folder: {model}; a model is a folder or ORG/NAME on the hub")
    return None


def fetch_base_model(repo_id: str, revision: str = "", *, with_companions: bool = False) -> Path:
    """A snapshot in the hub's cache with what the spec is computed from; what is there already is not fetched again.

    Raises InvalidRequestError for what is no repository's name and for a quantised model, SourceNotFoundError,
    SourceUnavailableError, and OSError where files cannot be written.
    """
    # The hub's library takes a while to import, and most commands do without it.
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    named = f"hf:{repo_id}" + (f"@{revision}" if revision else "")
    try:
        first = ["config.json", INDEX_FILE, SINGLE_FILE]
        folder = Path(snapshot_download(repo_id, revision=revision or None, allow_patterns=first))
        refuse_quantised(folder)
        # A snapshot's folder is called by its commit, from which a branch may have moved on.
        if missing := [glob.escape(file.name) for file in weights_files(folder) if not file.is_file()]:
            snapshot_download(repo_id, revision=folder.name, allow_patterns=missing)
        if with_companions:
            more: dict[str, Any] = {"allow_patterns": list(COMPANIONS), "ignore_patterns": ["*/*"]}
            snapshot_download(repo_id, revision=folder.name, **more)
        return folder
    except HFValidationError as exc:
        problem = f"{repo_id!r} is neither a folder here nor a repository's name (ORG/NAME)"
        raise InvalidRequestError([], problem) from exc
    except (RepositoryNotFoundError, RevisionNotFoundError) as exc:
        raise SourceNotFoundError(f"{named} not found, or not for your hub token (HF_TOKEN)", named) from exc
    except (OSError, HTTPError) as exc:
        if isinstance(exc, OSError) and exc.errno in _LOCAL_ERRORS:
            raise
        # No connection, an answer that is none, or offline mode.
        raise SourceUnavailableError(f"{named} cannot be fetched now: {type(exc).__name__}; try again later") from exc
