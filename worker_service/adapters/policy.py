"""Adapters of a request: those that it names, its tenant's defaults, or none. Pure state.

Semantics of transformers' `set_adapter`, `disable_adapters` and `enable_adapters`, for each tenant by itself.
"""

from dataclasses import dataclass, field

from hotslot.ids import TenantId
from hotslot.references import Reference


@dataclass(frozen=True, slots=True)
class Selection:
    """One adapter of a mix, by reference."""

    reference: Reference
    weight: float = 1.0
    """Factor on the adapter's own scaling."""


@dataclass(slots=True)
class AdapterDefaults:
    """Defaults and switches."""

    _defaults: dict[TenantId, tuple[Selection, ...]] = field(default_factory=dict)
    _disabled: set[TenantId] = field(default_factory=set)

    def choose(self, tenant: TenantId, named: tuple[Selection, ...], *, base_only: bool) -> tuple[Selection, ...]:
        """Adapters that serve a request; empty is the base model alone. Disabled adapters win over everything."""
        if base_only or tenant in self._disabled:
            return ()
        return named or self.defaults(tenant)

    def defaults(self, tenant: TenantId) -> tuple[Selection, ...]:
        """Adapters of a request that names none."""
        return self._defaults.get(tenant, ())

    def of_all(self) -> dict[TenantId, tuple[Selection, ...]]:
        """Defaults of all tenants that have some."""
        return dict(self._defaults)

    def set_defaults(self, tenant: TenantId, selections: tuple[Selection, ...]) -> None:
        """Change the defaults; none means the base."""
        if selections:
            self._defaults[tenant] = selections
        else:
            self._defaults.pop(tenant, None)

    def is_enabled(self, tenant: TenantId) -> bool:
        """True while adapters are applied."""
        return tenant not in self._disabled

    def enable(self, tenant: TenantId) -> None:
        """Apply adapters again."""
        self._disabled.discard(tenant)

    def disable(self, tenant: TenantId) -> None:
        """Serve the base alone."""
        self._disabled.add(tenant)
