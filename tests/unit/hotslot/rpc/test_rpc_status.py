"""The error table: complete, and the same error comes out as went in."""

import inspect
import time
import urllib.parse
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from hotslot import errors
from hotslot.errors import FieldViolation, HotslotError, Violation
from hotslot.errors.details import Detail
from hotslot.rpc import details
from hotslot.rpc.status import DETAILS_KEY, STATUS_TABLE, from_rpc_error, from_status, row_for, to_status


def all_error_classes() -> list[type[HotslotError]]:
    return [
        cls
        for _, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, HotslotError) and cls.__module__.startswith(f"{errors.__name__}.")
    ]


VIOLATION = Violation("SHAPE_MISMATCH", "layers.0.q.lora_A", "[8, 63]", "[8, 64]", "layers.0.q.lora_A is too narrow")
EXAMPLES: list[HotslotError] = [
    errors.HotslotError("something"),
    errors.InvalidRequestError([FieldViolation("top_p", "found 2, at most 1"), FieldViolation("seed", "negative")]),
    errors.InvalidReferenceError("A B", "no blanks"),
    errors.InvalidPageTokenError(),
    errors.InvalidEndpointError("nonsense", "expected host:port"),
    errors.InvalidContextsError("/c.json", "it is no JSON"),
    errors.EmptyPromptError(),
    errors.PromptTooLongError(9000, 2048),
    errors.InvalidAdapterError([VIOLATION, Violation("NOT_FINITE", "b", "NaN", "finite", "b holds a NaN")]),
    errors.UnsupportedAdapterError([VIOLATION]),
    errors.BaseModelMismatchError([VIOLATION], "for another base"),
    errors.RankTooLargeError([VIOLATION]),
    errors.SignatureRefusedError([VIOLATION]),
    errors.NotFoundError("no thing", "thing"),
    errors.AdapterNotFoundError("acme/bot"),
    errors.TagNotFoundError("acme/bot", "v2"),
    errors.VersionNotFoundError("acme/bot", "sha256:" + "0" * 64),
    errors.PolicyNotFoundError("acme/bot"),
    errors.BlobNotFoundError("sha256:" + "1" * 64),
    errors.BaseModelNotFoundError("org/model"),
    errors.SourceNotFoundError("no such folder", "dir:/x"),
    errors.CompiledCodeNotFoundError("sha256:" + "4" * 64),
    errors.AdapterNotLoadedError("acme/bot"),
    errors.ConflictError("conflict"),
    errors.EtagMismatchError("adapter 'x'", "a", "b"),
    errors.SourceChangedError("/imports/bot"),
    errors.StaleEpochError("worker w", 3, 2),
    errors.UploadBusyError("sha256:" + "2" * 64),
    errors.PreconditionError("not now", "thing"),
    errors.VersionInUseError("x", "sha256:" + "3" * 64, ["latest", "v1"]),
    errors.BaseModelNameTakenError("org/model", "sha256:" + "5" * 64, "sha256:" + "6" * 64),
    errors.BaseModelInUseError("org/model", 3),
    errors.NotDeletedError("x"),
    errors.AdapterPinnedError("x"),
    errors.CompiledCodeMismatchError("code", ["torch is '2.12', here '2.13'"]),
    errors.ModelNotServableError("it differs", "model.layers.3"),
    errors.CompilerMissingError("no code was shipped"),
    errors.InsecureTransportError("0.0.0.0:7400 would be served in plaintext", "0.0.0.0:7400"),
    errors.ClientMisuseError("not here", "client"),
    errors.ClientClosedError("the client of the store at host:1"),
    errors.ForkedClientError("the client of the store at host:1"),
    errors.WrongLoopError("the client of the store at host:1"),
    errors.UnauthenticatedError("no token"),
    errors.TokenExpiredError("expired"),
    errors.TokenRevokedError("revoked"),
    errors.TenantQuotaError("acme", "adapters", 10, 10, advice="delete some", retry_after_s=2.5),
    errors.AuditUnavailableError("no change is made", retry_after_s=1.0),
    errors.ForbiddenError("no"),
    errors.ScopeMissingError("read is missing"),
    errors.TenantForbiddenError("not yours"),
    errors.SourceForbiddenError("outside of the allowed roots"),
    errors.DigestMismatchError("blob", "sha256:aa", "sha256:bb"),
    errors.BlobLostError("sha256:aa", ["object storage: blob sha256:aa not found"]),
    errors.CompiledCodeRefusedError("code", "it is not sealed"),
    errors.CatalogDamagedError("tag bot:latest"),
    errors.RangeError("outside"),
    errors.BadOffsetError("upload", 10, 5),
    errors.RevisionCompactedError(3, 9),
    errors.ExhaustedError("full", subject="disk"),
    errors.QuotaExceededError("too big", subject="bytes", retry_after_s=1.5),
    errors.SlotsFullError("slots", subject="slots", retry_after_s=0.25),
    errors.QueueFullError("queue", subject="queue"),
    errors.UnavailableError("away", retry_after_s=2.0),
    errors.StreamStalledError("the reader took nothing for 120 s"),
    errors.DrainingError("w-1"),
    errors.StoreUnavailableError("store away: ünïcode is kept"),
    errors.StoreBusyError("too many calls", retry_after_s=0.75),
    errors.CatalogBehindError(3, 41, retry_after_s=0.5),
    errors.SourceUnavailableError("hub away"),
    errors.SourceThrottledError("s3://bucket takes no more", retry_after_s=9.0),
    errors.CoordinationUnavailableError("redis away", retry_after_s=0.5),
    errors.CoordinationForbiddenError("no rights"),
    errors.AdaptersDisabledError("switched off"),
    errors.EngineFailedError("incident 2"),
    errors.NoWorkersError("none"),
    errors.RequestDeadlineError("too late"),
    errors.RequestCancelledError("gone"),
    errors.NotImplementedYetError("dora"),
    errors.InternalError("incident 1"),
    errors.StepFailedError("incident 3"),
    errors.NonFiniteLogitsError(9, ["sha256:ab"]),
]


class FailedCall(grpc.RpcError):
    """A failed call as both of grpc's flavours present it."""

    def __init__(self, code: grpc.StatusCode, text: str, trailers: tuple[tuple[str, bytes], ...] = ()) -> None:
        super().__init__()
        self._parts = code, text, trailers

    def code(self) -> grpc.StatusCode:
        return self._parts[0]

    def details(self) -> str:
        return self._parts[1]

    def trailing_metadata(self) -> Any:
        return self._parts[2]


def test_every_error_class_has_exactly_one_row() -> None:
    assert sorted(row.error.__name__ for row in STATUS_TABLE) == sorted(c.__name__ for c in all_error_classes())


def test_every_reason_stands_for_one_class() -> None:
    assert len({row.reason for row in STATUS_TABLE}) == len(STATUS_TABLE)


def test_every_error_class_is_in_the_drawn_tree() -> None:
    drawn = errors.__doc__ or ""
    assert [c.__name__ for c in all_error_classes() if c.__name__ not in drawn] == []


def test_every_error_class_has_an_example_here() -> None:
    assert {type(example) for example in EXAMPLES} == set(all_error_classes())


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_an_error_comes_back_as_the_same_class_with_message_and_attributes(error: HotslotError) -> None:
    status = to_status(error)
    failure = FailedCall(row_for(error).code, status.message, ((DETAILS_KEY, status.SerializeToString()),))
    back = from_rpc_error(failure)
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


@pytest.mark.parametrize("row", STATUS_TABLE, ids=lambda r: r.reason)
def test_attributes_missing_on_the_wire_have_empty_values(row: object) -> None:
    error = next(e for e in EXAMPLES if row_for(e) is row)
    status = to_status(error)
    info = details.error_info(status)
    assert info is not None
    info.metadata.clear()
    bare = status_pb2.Status(code=status.code, message="bare")
    bare.details.add().Pack(info)
    back = from_status(bare)
    assert back is not None
    assert vars(back).keys() == vars(error).keys()


def infos(status: status_pb2.Status) -> list[error_details_pb2.ErrorInfo]:
    found = []
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            found.append(info)
    return found


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_servers_and_clients_of_either_domain_understand_each_other(error: HotslotError) -> None:
    status = to_status(error)
    now, earlier = infos(status)
    assert (now.domain, earlier.domain) == ("hotslot.dev", "hotslot")
    # A client of an earlier release looks for its domain alone.
    assert earlier.reason == now.reason
    for name, detail in error.carries.items():
        if detail in (Detail.TEXT, Detail.NUMBER):
            assert earlier.metadata[name] == now.metadata[name]
    # A server of an earlier release has all of it under its domain.
    from_earlier = status_pb2.Status(code=status.code, message=status.message)
    now.domain = "hotslot"
    from_earlier.details.add().Pack(now)
    from_earlier.details.extend(detail for detail in status.details if not detail.Is(now.DESCRIPTOR))
    back = from_status(from_earlier)
    assert type(back) is type(error)
    assert vars(back) == vars(error)


def test_an_error_of_a_foreign_domain_is_not_ours() -> None:
    status = status_pb2.Status(code=5, message="not ours")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="ADAPTER_NOT_FOUND", domain="example.com"))
    assert from_status(status) is None


def test_a_subclass_without_a_row_travels_as_its_ancestor() -> None:
    class Special(errors.SlotsFullError):
        pass

    assert row_for(Special("x", subject="y")).reason == "SLOTS_FULL"


def test_a_thousand_violations_fit_into_the_trailers_and_the_rest_is_counted() -> None:
    error = errors.InvalidAdapterError(
        [
            Violation("SHAPE_MISMATCH", f"layer.{i}.é", "[1]", "[2]", f"layer.{i} has the wrong shape")
            for i in range(1000)
        ]
    )
    status = to_status(error)
    back = from_status(status)
    assert isinstance(back, errors.InvalidAdapterError)
    assert len(status.SerializeToString()) * 4 / 3 < 8192 - 1024
    assert 5 < len(back.violations) < 1000
    assert back.violations == error.violations[: len(back.violations)]
    assert str(back).endswith(f"(and {1000 - len(back.violations)} more)")


def test_a_message_lists_the_first_violations_and_tells_their_number() -> None:
    error = errors.InvalidAdapterError([Violation("X", "x", "1", "2", f"reason {i};") for i in range(1000)])
    assert "1000 violations" in error.message
    assert "reason 7;" in error.message
    assert "reason 8;" not in error.message
    assert len(error.violations) == 1000


def violations_of(problem: str, count: int) -> list[Violation]:
    return [Violation.of("MODULE_MISSING", f"model.layers.{i}.q_proj", "none", "A, B", problem) for i in range(count)]


def test_violations_that_do_not_fit_are_grouped_by_what_they_say() -> None:
    many = [*violations_of("it is missing", 2_000), *violations_of("it is not targeted", 30), *violations_of("odd", 1)]
    error = from_status(to_status(errors.InvalidAdapterError(many)))
    assert isinstance(error, errors.InvalidAdapterError)
    assert [violation.subject for violation in error.violations] == [
        "model.layers.0.q_proj and 1999 more",
        "model.layers.0.q_proj and 29 more",
        "model.layers.0.q_proj",
    ]
    first = "model.layers.0.q_proj, model.layers.1.q_proj, model.layers.2.q_proj, …"
    assert error.violations[1].message == f"30 times ({first}): it is not targeted: found none, expected A, B"
    assert (error.violations[1].found, error.violations[1].expected) == ("none", "A, B")
    assert "2031 violations" in error.message
    assert "30 times" in error.message


def test_violations_that_fit_are_carried_as_they_are() -> None:
    few = violations_of("it is missing", 5)
    error = from_status(to_status(errors.InvalidAdapterError(few)))
    assert isinstance(error, errors.InvalidAdapterError)
    assert list(error.violations) == few


def test_a_hundred_thousand_fields_cost_no_more_than_those_that_fit() -> None:
    fields = [FieldViolation(f"modules[{index}].path", "must not be empty") for index in range(100_000)]
    error = errors.InvalidRequestError(fields)
    assert len(error.message) < 3_000
    assert error.message.endswith("; and 99968 more")
    began_s = time.process_time()
    status = to_status(error)
    assert time.process_time() - began_s < 0.5
    received = from_status(status)
    assert isinstance(received, errors.InvalidRequestError)
    info = details.error_info(status)
    assert info is not None
    assert int(info.metadata["omitted"]) + len(received.fields) == 100_000


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 300),
    field=st.text(min_size=1, max_size=40),
    description=st.text(min_size=1, max_size=90),
    code=st.sampled_from(["", "BAD"]),
)
def test_a_status_fits_however_many_things_are_wrong(count: int, field: str, description: str, code: str) -> None:
    error: HotslotError = errors.InvalidRequestError(
        [FieldViolation(f"{field}[{i}]", description) for i in range(count)]
    )
    if code:
        wrong = [Violation(code, f"{field}[{i}]", description, description, f"{i} {description}") for i in range(count)]
        error = errors.InvalidAdapterError(wrong)
    status = to_status(error)
    assert len(urllib.parse.quote(status.message)) + (status.ByteSize() + 2) // 3 * 4 <= details.MAX_STATUS_BYTES
    assert type(from_status(status)) is type(error)


def test_a_status_of_many_fields_is_made_within_milliseconds() -> None:
    """It is made on the event loop: before, its message was cut anew for every field, a character at a time."""
    fields = [FieldViolation(f"stop.stop_token_ids[{index}]", "found token -1, …") for index in range(256)]
    error = errors.InvalidRequestError(fields)
    took_s = []
    for _ in range(5):
        began_s = time.process_time()
        to_status(error)
        took_s.append(time.process_time() - began_s)
    assert min(took_s) < 0.015


def test_one_enormous_text_still_fits() -> None:
    for error in (
        errors.InternalError("é" * 100_000),
        errors.AdapterNotFoundError("x" * 100_000),
        errors.InvalidAdapterError([Violation("C", "é" * 9999, "f" * 9999, "e" * 9999, "m" * 9999)] * 3),
        errors.InvalidRequestError([FieldViolation("f", "d" * 100_000)] * 100),
    ):
        status = to_status(error)
        assert len(status.SerializeToString()) * 4 / 3 < details.MAX_STATUS_BYTES
        assert type(from_status(status)) is type(error)


@pytest.mark.parametrize("code", list(grpc.StatusCode), ids=lambda c: c.name)
def test_a_status_of_another_origin_becomes_an_error_of_its_kind(code: grpc.StatusCode) -> None:
    error = from_rpc_error(FailedCall(code, "said so"))
    assert str(error).endswith("said so")
    if code not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN):
        assert isinstance(error, HotslotError)


def test_the_caller_says_what_an_unreachable_server_means() -> None:
    failure = FailedCall(grpc.StatusCode.UNAVAILABLE, "connection refused")
    assert type(from_rpc_error(failure, unavailable=errors.StoreUnavailableError)) is errors.StoreUnavailableError


@pytest.mark.parametrize("trailer", [b"", b"\xff\xff", b"\x08\x05"])
def test_broken_or_foreign_details_fall_back_to_the_code(trailer: bytes) -> None:
    error = from_rpc_error(FailedCall(grpc.StatusCode.NOT_FOUND, "no", ((DETAILS_KEY, trailer),)))
    assert type(error) is errors.NotFoundError
