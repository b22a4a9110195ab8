"""Settled requests: checked once, with the versions that serve them, as they are routed and as they are served."""

from dataclasses import dataclass, replace

from hotslot.contract.generation import GenerationRequest, Logprobs, ServedAdapter
from hotslot.errors import StoreUnavailableError
from hotslot.ids import Digest, TenantId
from shared.fleet.replica_policy import DEFAULT_REPLICA_POLICY, ReplicaPolicy
from worker_service.adapters.policy import Selection
from worker_service.adapters.provider import Chosen
from worker_service.adapters.version import AdapterVersion
from worker_service.engine.messages import NO_LOGPROBS


@dataclass(frozen=True, slots=True)
class SettledRequest:
    """A request as it was accepted: with an id, and with adapters in the place of names, defaults and switches.

    **Invariant**: routing and engine have the same versions. A tag that moves after a request was accepted is the next
    request's.
    """

    tenant: TenantId
    request: GenerationRequest
    chosen: tuple[Chosen, ...]
    """Versions that serve it; none is the base model alone."""
    accepted_s: float
    """On the engine's clock, as the next."""
    deadline_s: float | None
    unconfirmed: StoreUnavailableError | None = None
    """Set where the store could not confirm the versions, which this worker does not hold: only others may serve it."""

    @property
    def digests(self) -> tuple[Digest, ...]:
        """Versions by digest, in the request's order."""
        return tuple(item.version.digest for item in self.chosen)

    @property
    def mix(self) -> list[tuple[AdapterVersion, float]]:
        """Versions with their weights; references to the same version add up, as the adapters themselves would."""
        mix: dict[Digest, tuple[AdapterVersion, float]] = {}
        for item in self.chosen:
            _, weight = mix.get(item.version.digest, (item.version, 0.0))
            mix[item.version.digest] = (item.version, weight + item.selection.weight)
        return list(mix.values())

    @property
    def carried(self) -> tuple[Selection, ...]:
        """Selections as another worker gets them: beside each tag the digest that it stood for when it was settled.

        Tags alone where the store did not confirm them: that worker may know more.
        """
        if self.unconfirmed is not None:
            return tuple(item.selection for item in self.chosen)
        return tuple(
            replace(item.selection, reference=replace(item.selection.reference, digest=item.version.digest))
            for item in self.chosen
        )

    @property
    def references(self) -> tuple[str, ...]:
        """References as the caller, or this worker's defaults, named them; answers tell them."""
        return tuple(str(item.selection.reference) for item in self.chosen)

    @property
    def served(self) -> tuple[ServedAdapter, ...]:
        """Adapters as answers tell them: by reference, with the digests that serve and the weights."""
        return tuple(
            ServedAdapter(str(item.selection.reference), item.version.digest, item.selection.weight)
            for item in self.chosen
        )

    @property
    def policy(self) -> ReplicaPolicy:
        """Policy of the first adapter."""
        return self.chosen[0].version.policy if self.chosen else DEFAULT_REPLICA_POLICY

    @property
    def logprobs(self) -> Logprobs:
        """Log-probabilities that come back."""
        return self.request.logprobs or NO_LOGPROBS
