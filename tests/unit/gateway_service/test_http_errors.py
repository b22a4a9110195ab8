"""Every error has a status over HTTP, and none tells of addresses or of what failed inside."""

import grpc
import pytest

from gateway_service.errors import HTTP_STATUSES, ApiError, api_error
from gateway_service.translation import chat_param, completion_param
from hotslot import errors
from hotslot.errors import FieldViolation, HotslotError
from hotslot.rpc.status import STATUS_TABLE, StatusRow, new_error

SECRET = "the worker at 10.0.0.7:7500 cannot be reached: /var/lib/x.py line 3"


@pytest.mark.parametrize("row", STATUS_TABLE, ids=lambda row: row.error.__name__)
def test_every_error_class_has_a_status_and_keeps_its_reason(row: StatusRow) -> None:
    told = api_error(new_error(row.error, "something"))
    assert told.status == HTTP_STATUSES[row.code].status
    assert 400 <= told.status < 600
    assert told.code == row.reason
    assert told.body()["error"] == {
        "message": told.message,
        "type": told.kind,
        "param": told.param,
        "code": row.reason,
    }


def test_every_grpc_code_but_ok_has_a_status() -> None:
    assert set(HTTP_STATUSES) == set(grpc.StatusCode) - {grpc.StatusCode.OK}


@pytest.mark.parametrize("row", STATUS_TABLE, ids=lambda row: row.error.__name__)
def test_what_is_away_or_failed_inside_tells_nothing(row: StatusRow) -> None:
    told = api_error(new_error(row.error, SECRET))
    if told.status >= 500 and row.error not in (errors.StepFailedError, errors.NonFiniteLogitsError):
        hidden = issubclass(row.error, errors.UnavailableError | errors.InternalError) or row.error is HotslotError
        assert not hidden or "10.0.0.7" not in told.message


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (errors.QueueFullError("full", subject="queue", retry_after_s=2.2), ("3", "2200")),
        (errors.SlotsFullError("full", subject="slots", retry_after_s=0.05), ("1", "50")),
        (errors.StoreUnavailableError("away"), ("1", "1000")),
        (errors.DrainingError("w-1"), ("1", "1000")),
    ],
)
def test_what_is_full_or_away_says_when_to_try_again(error: HotslotError, seconds: tuple[str, str]) -> None:
    headers = api_error(error).headers()
    assert (headers["retry-after"], headers["retry-after-ms"]) == seconds
    assert headers["x-should-retry"] == "true"


def test_what_would_fail_again_is_not_retried() -> None:
    for error in (
        errors.StepFailedError("broke"),
        errors.PreconditionError("no", "x"),
        errors.RequestDeadlineError(""),
    ):
        assert api_error(error).headers() == {"x-should-retry": "false"}


def test_advice_to_call_the_command_is_left_out() -> None:
    assert "hotslot" not in api_error(errors.AdapterNotFoundError("bot")).message


@pytest.mark.parametrize(
    ("field", "chat", "completion"),
    [
        ("sampling.temperature", "temperature", "temperature"),
        ("sampling.logit_bias[7]", "logit_bias[7]", "logit_bias[7]"),
        ("stop.max_tokens", "max_tokens", "max_tokens"),
        ("stop.stop_strings[2]", "stop[2]", "stop[2]"),
        ("stop.stop_token_ids[2]", "stop_token_ids[2]", "stop_token_ids[2]"),
        ("num_choices", "n", "n"),
        ("logprobs.num_alternatives", "top_logprobs", "logprobs"),
        ("prompt", "messages", "prompt"),
        ("chat.messages[3].role", "messages[3].role", "messages[3].role"),
        ("prompt.chat.messages[3].parts[0]", "messages[3].content[0]", "messages[3].content[0]"),
        ("chat.messages[0].tool_calls[1].name", *["messages[0].tool_calls[1].function.name"] * 2),
        ("chat.tools_json[1]", "tools[1]", "tools[1]"),
        ("prompt.chat.tools[1]", "tools[1]", "tools[1]"),
        ("chat.template_arguments_json", "chat_template_kwargs", "chat_template_kwargs"),
        ("chat.template", "chat_template", "chat_template"),
        ("text", "prompt", "prompt"),
        ("tokens.token_ids[4]", "prompt[4]", "prompt[4]"),
        ("prompt.tokens.token_ids[4]", "prompt[4]", "prompt[4]"),
        ("adapters.reference", "model", "model"),
        ("adapters[1].weight", "adapters[1].weight", "adapters[1].weight"),
    ],
)
def test_fields_of_our_protocol_are_called_as_the_body_calls_them(field: str, chat: str, completion: str) -> None:
    assert (chat_param(field), completion_param(field)) == (chat, completion)
    error = errors.InvalidRequestError([FieldViolation(field, "is wrong")])
    assert api_error(error, chat_param).message == f"{chat}: is wrong"
    assert isinstance(api_error(error, chat_param), ApiError)
