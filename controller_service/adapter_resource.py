"""Adapter resources: what their spec wants, read and checked, and what their status says. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.references import DEFAULT_TAG, parse_name, parse_tag
from hotslot.sources import parse_source

GROUP, VERSION, PLURAL = "hotslot.dev", "v1alpha1", "adapters"
FINALIZER = f"{GROUP}/adapter"
MAX_MESSAGE_LENGTH = 2_000
Resource = Mapping[str, Any]


class DeletionPolicy(StrEnum):
    """Fate of the adapter in the store when its resource is deleted."""

    KEEP = "Keep"
    DELETE = "Delete"


class Phase(StrEnum):
    """Short word for people; conditions say more."""

    PENDING = "Pending"
    READY = "Ready"
    FAILED = "Failed"
    DELETING = "Deleting"


class WantedPolicy(BaseModel):
    """Policy that the adapter is to have."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    min_replicas: int = Field(default=0, alias="minReplicas", ge=0)
    max_replicas: int = Field(default=0, alias="maxReplicas", ge=0)
    pinned: bool = False
    keep_versions: int = Field(default=0, alias="keepVersions", ge=0)
    untagged_ttl_s: float = Field(default=0.0, alias="untaggedTtlSeconds", ge=0)


class WantedAdapter(BaseModel):
    """Spec of a resource."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    uri: str = Field(min_length=1)
    digest: str = ""
    name: str = ""
    tag: str = DEFAULT_TAG
    base_model: str = Field(default="", alias="baseModel")
    labels: dict[str, str] = Field(default_factory=dict)
    policy: WantedPolicy | None = None
    deletion_policy: DeletionPolicy = Field(default=DeletionPolicy.KEEP, alias="deletionPolicy")

    @property
    def reference(self) -> str:
        """Name and tag in the store."""
        return f"{self.name}:{self.tag}"

    @property
    def import_key(self) -> str:
        """Everything that an import depends on: another text means another import."""
        parts = (self.uri, self.digest, self.reference, self.base_model, sorted(self.labels.items()))
        return json.dumps(parts, separators=(",", ":"))


def wanted_of(resource: Resource) -> WantedAdapter:
    """Read a resource's spec; raises InvalidRequestError with every problem that can be seen without the store."""
    spec = dict(resource.get("spec") or {})
    spec.setdefault("name", resource["metadata"]["name"])
    try:
        wanted = WantedAdapter(**spec)
    except ValidationError as exc:
        raise InvalidRequestError(
            [FieldViolation(f"spec.{'.'.join(map(str, each['loc']))}", each["msg"]) for each in exc.errors()]
        ) from exc
    parse_source(wanted.uri, wanted.digest)
    parse_name(wanted.name)
    parse_tag(wanted.tag)
    return wanted


@dataclass(frozen=True, slots=True)
class Condition:
    """One aspect of a resource, as Kubernetes writes it."""

    type: str
    is_true: bool | None
    """None where it is not known."""
    reason: str
    message: str = ""


@dataclass(slots=True)
class Outcome:
    """Result of one look at a resource and the store."""

    phase: Phase
    conditions: list[Condition] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """Fields of the status beside phase and conditions; None takes one away."""
    retry_s: float | None = None
    """Time after which to look again; None leaves it to the next change or resync."""


def status_of(resource: Resource, outcome: Outcome, now: datetime | None = None) -> dict[str, Any] | None:
    """The status to write; None where the resource has it already. Conditions' times change with their states only."""
    generation = resource["metadata"].get("generation", 0)
    before = dict(resource.get("status") or {})
    known = {each["type"]: each for each in before.get("conditions", ())}
    time = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = []
    for condition in outcome.conditions:
        status = {True: "True", False: "False", None: "Unknown"}[condition.is_true]
        earlier = known.get(condition.type)
        since = earlier["lastTransitionTime"] if earlier is not None and earlier["status"] == status else time
        conditions.append(
            {
                "type": condition.type,
                "status": status,
                "reason": condition.reason,
                "message": condition.message[:MAX_MESSAGE_LENGTH],
                "observedGeneration": generation,
                "lastTransitionTime": since,
            }
        )
    after = before | {"phase": str(outcome.phase), "observedGeneration": generation, "conditions": conditions}
    for name, value in outcome.facts.items():
        after[name] = value
    after = {name: value for name, value in after.items() if value is not None}
    if after == before:
        return None
    # A merge patch: what is to go is named.
    return after | dict.fromkeys(before.keys() - after.keys())


def is_deleting(resource: Resource) -> bool:
    """True once a user has deleted the resource, which finalizers keep."""
    return "deletionTimestamp" in resource["metadata"]


def has_finalizer(resource: Resource) -> bool:
    """True where the resource waits for this controller before it goes."""
    return FINALIZER in resource["metadata"].get("finalizers", ())


def finalizers_with(resource: Resource, *, ours: bool) -> list[str]:
    """The resource's finalizers, with or without this controller's."""
    others = [name for name in resource["metadata"].get("finalizers", ()) if name != FINALIZER]
    return [*others, FINALIZER] if ours else others


def reason_of(words: str) -> str:
    """A reason as Kubernetes writes them: INVALID_ADAPTER is InvalidAdapter."""
    return "".join(word.capitalize() for word in words.split("_"))
