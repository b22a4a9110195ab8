"""What a resource wants is read with every problem, and its status changes only where something did."""

from datetime import UTC, datetime
from typing import Any

import pytest

from controller_service.adapter_resource import (
    FINALIZER,
    Condition,
    DeletionPolicy,
    Outcome,
    Phase,
    finalizers_with,
    has_finalizer,
    reason_of,
    status_of,
    wanted_of,
)
from hotslot.errors import HotslotError

FIRST, LATER = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)


def resource(status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    found = {"metadata": {"name": "bot", "generation": 3}, "spec": {"uri": "hf://acme/bot", **spec}}
    return found | ({"status": status} if status is not None else {})


def test_a_spec_has_defaults_that_make_a_reference() -> None:
    wanted = wanted_of(resource())
    assert (wanted.reference, wanted.deletion_policy, wanted.policy) == ("bot:latest", DeletionPolicy.KEEP, None)
    named = wanted_of(resource(name="acme/bot", tag="v1", policy={"minReplicas": 2, "untaggedTtlSeconds": 60}))
    assert named.reference == "acme/bot:v1"
    assert named.policy is not None
    assert (named.policy.min_replicas, named.policy.untagged_ttl_s) == (2, 60.0)


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"uri": ""}, "spec.uri"),
        ({"uri": "ftp://x/y"}, "SOURCE"),
        ({"uri": "hf://acme"}, "SOURCE"),
        ({"name": "Not A Name"}, "name"),
        ({"tag": "no:tag"}, "tag"),
        ({"deletionPolicy": "Maybe"}, "spec.deletionPolicy"),
        ({"policy": {"minReplicas": -1}}, "spec.policy.minReplicas"),
        ({"polcy": {}}, "spec.polcy"),
    ],
)
def test_a_spec_that_cannot_be_is_refused_by_the_field(spec: dict[str, Any], named: str) -> None:
    with pytest.raises(HotslotError, match=named):
        wanted_of(resource(**spec))


def test_another_import_is_another_key_and_another_policy_is_not() -> None:
    key = wanted_of(resource()).import_key
    assert wanted_of(resource(policy={"pinned": True}, deletionPolicy="Delete")).import_key == key
    changes: list[dict[str, Any]] = [
        {"uri": "hf://acme/bot@v2"}, {"name": "bat"}, {"tag": "v2"}, {"baseModel": "m"}, {"labels": {"a": "b"}},
    ]  # fmt: skip
    keys = {wanted_of(resource(**change)).import_key for change in changes}
    assert len(keys - {key}) == len(changes)


def ready(message: str = "", *, is_true: bool = True) -> Outcome:
    return Outcome(Phase.READY, [Condition("Ready", is_true, "Ready", message)], {"digest": "sha256:a"})


def test_a_status_that_says_the_same_is_not_written_again() -> None:
    status = status_of(resource(), ready(), FIRST)
    assert status is not None
    assert status["observedGeneration"] == 3
    assert status_of(resource(status), ready(), LATER) is None


def test_times_of_conditions_change_with_their_state_only() -> None:
    first = status_of(resource(), ready(), FIRST)
    told = status_of(resource(first), ready("more words"), LATER)
    assert told is not None
    assert told["conditions"][0]["lastTransitionTime"] == "2026-01-01T00:00:00Z"
    failed = status_of(resource(told), ready(is_true=False), LATER)
    assert failed is not None
    assert failed["conditions"][0]["lastTransitionTime"] == "2026-01-02T00:00:00Z"


def test_what_is_to_go_from_a_status_is_named_in_the_patch() -> None:
    first = status_of(resource(), Outcome(Phase.READY, facts={"desiredReplicas": 2}), FIRST)
    assert first is not None
    patch = status_of(resource(first), Outcome(Phase.READY, facts={"desiredReplicas": None}), FIRST)
    assert patch is not None
    assert patch["desiredReplicas"] is None


def test_finalizers_of_others_stay() -> None:
    others = {"metadata": {"name": "bot", "finalizers": ["other/one"]}}
    assert not has_finalizer(others)
    assert finalizers_with(others, ours=True) == ["other/one", FINALIZER]
    ours = {"metadata": {"name": "bot", "finalizers": [FINALIZER, "other/one"]}}
    assert has_finalizer(ours)
    assert finalizers_with(ours, ours=False) == ["other/one"]


def test_reasons_are_in_the_spelling_of_kubernetes() -> None:
    assert reason_of("INVALID_ADAPTER") == "InvalidAdapter"
