"""A start whose record does not fit begins anew, without what it had loaded."""

import gc
import hashlib
import json
from pathlib import Path

import torch
import transformers
from structlog.testing import capture_logs

from hotslot.formats.base_model import spec_from_folder
from tests.model.tiny_worker import apart, tiny_options
from tests.support.tiny_models import SIZES, Architecture, save_model
from worker_service.model.attention import KvCache
from worker_service.model.code_key import code_key
from worker_service.model.kept_start import FORMAT, KeptStart
from worker_service.model.loading import configure_torch, load_model


def num_caches() -> int:
    return sum(isinstance(each, KvCache) for each in gc.get_objects())


def test_a_refused_start_holds_no_memory_while_the_next_one_loads(tmp_path: Path) -> None:
    """Weights and caches may be most of what a machine has."""
    base, cache_dir = tmp_path / "base", tmp_path / "cache"
    save_model(base, Architecture(transformers.LlamaConfig, {**SIZES, "head_dim": 16}), 0)
    options = tiny_options(base, cache_dir=cache_dir)
    threads = torch.get_num_threads()
    configure_torch(options)
    place = KeptStart(cache_dir, code_key(options, spec_from_folder(base, "tiny").digest, base))
    place.path.parent.mkdir(parents=True)
    facts = dict(place.key.facts)
    # Nothing is compiled, so nothing can be bound: the record is refused once everything is loaded.
    record = {"format": FORMAT, "facts": facts, "programs": {}, "libraries": {}, "answers": {}, "forwards": []}
    content = json.dumps(record).encode()
    place.path.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    gc.collect()
    before, seen = num_caches(), list[int]()

    def count(stage: str) -> None:
        if stage == "load":
            seen.append(num_caches())

    try:
        with apart(), capture_logs() as logs:
            load_model(options, count)
    finally:
        torch.set_num_threads(threads)
    assert [log["why"] for log in logs if log["event"] == "kept_start_not_used"] == [
        "this process has no kernels to run them"
    ]
    assert seen == [before, before]
