"""Registered base models that a checkpoint's tensors fit: told where its config's own name leads nowhere."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType

from hotslot.contract.catalog import BaseModelMatch
from hotslot.errors import BaseModelNotFoundError, Violation
from hotslot.formats.base_spec import BaseSpec
from hotslot.formats.safetensors_header import Header
from hotslot.ids import Digest
from store_service.admission.admit import Checkpoint, Verdict, header_of
from store_service.admission.fitting import fits, likeness
from store_service.admission.settings import AdmissionLimits
from store_service.catalog.base_models import BaseModels

MAX_LOOKED_AT = 1_000
MAX_NAMED = 20
PAGE = 50
MISMATCH = "BASE_MODEL_MISMATCH"
NONE: Mapping[Digest, str] = MappingProxyType({})


class BaseChoice:
    """Looks through the registered base models. Every method blocks."""

    def __init__(self, base_models: BaseModels, limits: AdmissionLimits) -> None:
        self._base_models = base_models
        self._limits = limits

    def match(self, name: str, header: Header) -> BaseModelMatch:
        """The base models that an adapter with this header, which calls its base so, may be for."""
        known: dict[Digest, str] = {}
        registered = ""
        if name:
            with suppress(BaseModelNotFoundError):
                spec = self._base_models.get(name).spec
                registered = spec.name
                if fits(header, spec):
                    known[spec.digest] = spec.name
        return BaseModelMatch(registered, self._fitting(name, header, known))

    def not_found(self, error: BaseModelNotFoundError, checkpoint: Checkpoint) -> BaseModelNotFoundError:
        """The same error, naming those that the tensors fit."""
        header = header_of(checkpoint, self._limits)
        return BaseModelNotFoundError(error.resource, self._fitting(error.resource, header) if header else ())

    def explained(self, verdict: Verdict, checkpoint: Checkpoint, base: BaseSpec) -> Verdict:
        """A verdict that names other base models where the tensors do not fit the one that was asked for."""
        if all(violation.code != MISMATCH for violation in verdict.violations):
            return verdict
        header = header_of(checkpoint, self._limits)
        others = [name for name in self._fitting(base.name, header) if name != base.name] if header else []
        if not others:
            return verdict
        advice = f"; its tensors fit {', '.join(others)}: name one as base_model"

        def told(violation: Violation) -> Violation:
            return replace(violation, message=violation.message + advice) if violation.code == MISMATCH else violation

        return replace(verdict, violations=tuple(map(told, verdict.violations)))

    def _fitting(
        self, name: str, header: Header, known: Mapping[Digest, str] = MappingProxyType({})
    ) -> tuple[str, ...]:
        found = dict(known)
        after, num_looked_at = 0, 0
        while num_looked_at < MAX_LOOKED_AT:
            page = self._base_models.list(limit=PAGE, after=after)
            if not page:
                break
            for _, record in page:
                # Further names of one are aliases.
                if not record.is_superseded and record.spec.digest not in found and fits(header, record.spec):
                    found[record.spec.digest] = record.spec.name
            after, num_looked_at = page[-1][0], num_looked_at + len(page)
        # The newest comes first among those that are called alike.
        names = list(dict.fromkeys(reversed(found.values())))
        return tuple(sorted(names, key=lambda other: likeness(name, other), reverse=True)[:MAX_NAMED])
