"""Plans of checkpoints that were checked before: a trainer's next step has the last one's header and config."""

import hashlib
import threading
from dataclasses import dataclass
from typing import BinaryIO

from cachetools import LRUCache

from hotslot.formats.base_spec import BaseSpec
from hotslot.formats.safetensors_header import Header, header_bytes
from store_service.admission.normalise import WeightsPlan
from store_service.admission.planned import AdapterPlan
from store_service.admission.settings import AdmissionLimits

MAX_TENSORS = 40_000
"""Tensors of all plans together that are kept; one takes about a kilobyte."""


@dataclass(frozen=True, slots=True)
class Known:
    """Outcome of a checkpoint's checks by names, shapes and types, which had nothing against it."""

    base: BaseSpec
    header: Header
    plan: AdapterPlan
    weights: WeightsPlan
    """Layout of the file that is written by that plan."""


class KnownPlans:
    """Plans by header, config and limits, each for one base model. Thread-safe."""

    def __init__(self, max_tensors: int = MAX_TENSORS) -> None:
        self._known: LRUCache[object, Known] = LRUCache(max_tensors, getsizeof=lambda known: len(known.header.tensors))
        self._lock = threading.Lock()

    def get(self, key: object, base: BaseSpec) -> Known | None:
        """The plan for this very base model: when more is known of a base model, it is another object."""
        with self._lock:
            known = self._known.get(key)
        return known if known is not None and known.base is base else None

    def keep(self, key: object, known: Known) -> None:
        """Keep a plan, as long as there is room."""
        with self._lock:
            if len(known.header.tensors) <= self._known.maxsize:
                self._known[key] = known


class PlanSearch:
    """The way from one open checkpoint to its plan, where there is one; used once."""

    def __init__(self, plans: KnownPlans | None, config_digest: bytes, base: BaseSpec, limits: AdmissionLimits) -> None:
        self._plans = plans
        self._config_digest = config_digest
        self._base = base
        self._limits = limits
        self._key: object = None
        self.known: Known | None = None
        """Found by `header`."""

    def header(self, file: BinaryIO, size_bytes: int) -> Header | None:
        """The parsed header of one file's bytes, if its checkpoint's plan is known."""
        data = header_bytes(file, size_bytes, self._limits.header) if self._plans is not None else None
        if data is None or self._plans is None:
            return None
        # Names, shapes, types and places in the file decide about a plan; values are read and checked every time.
        self._key = hashlib.sha256(data).digest(), size_bytes, self._config_digest, self._limits
        self.known = self._plans.get(self._key, self._base)
        return self.known.header if self.known is not None else None

    def keep(self, header: Header, plan: AdapterPlan, weights: WeightsPlan) -> None:
        """Keep what was found out; nothing of checkpoints in several files."""
        if self._plans is not None and self._key is not None:
            self._plans.keep(self._key, Known(self._base, header, plan, weights))
