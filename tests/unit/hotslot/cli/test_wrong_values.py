"""Values that a message cannot hold: every field of every request, and every parameter of every client."""

import contextlib
import dataclasses
import inspect
import math
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from hotslot import (
    AdapterSelection,
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    HotslotClient,
    Logprobs,
    PlacementClient,
    Sampling,
    Stop,
    StoreClient,
    TextPart,
    ToolCall,
    WorkerClient,
)
from hotslot.cli.app import run
from hotslot.codec import build
from hotslot.codec import request_to_proto as request_to
from hotslot.contract.generation import DEFAULT_MAX_TOKENS
from hotslot.errors import InvalidRequestError
from hotslot.pb.hotslot.placement.v1 import placement_pb2
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2, blob_pb2
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2, inference_pb2

LONE = "\ud83d"
SERVICES = (placement_pb2, adapter_store_pb2, blob_pb2, adapter_control_pb2, inference_pb2)


def request_types() -> Iterator[type[Message]]:
    """The requests of all methods of all services."""
    for module in SERVICES:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield GetMessageClass(method.input_type)


def wrong_for(field: Any) -> list[object]:
    """What no field of this type holds."""
    if field.message_type is not None:
        return [1, "x", ["x"]]
    kinds = {
        FieldDescriptor.TYPE_STRING: [LONE, "ok" + LONE, b"x", 1, None, ["x"], ("x",), {"x": 1}],
        FieldDescriptor.TYPE_BYTES: ["x", 1, [1]],
        FieldDescriptor.TYPE_BOOL: [1, "true", None, 1.0, []],
        FieldDescriptor.TYPE_DOUBLE: ["x", math.nan, math.inf, -math.inf, True, 1j, 10**400, [1.0], "1.0"],
        FieldDescriptor.TYPE_FLOAT: ["x", math.nan, math.inf, True, 1e39, [1.0]],
        FieldDescriptor.TYPE_ENUM: ["x", 1.0, 10**6, True, [1]],
        FieldDescriptor.TYPE_INT32: [2**31, -(2**31) - 1, 2.0, "1", True, math.nan, [1], 10**400],
        FieldDescriptor.TYPE_UINT32: [-1, 2**32, 2.0, "1", True, [1]],
        FieldDescriptor.TYPE_INT64: [2**63, -(2**63) - 1, 2.0, "1", True, [1], 10**5000],
        FieldDescriptor.TYPE_UINT64: [-1, 2**64, 2.0, "1", True, [1]],
    }
    values = kinds[field.type]
    return [value for value in values if not (value is None and field.has_presence)]


def wrong_values(descriptor: Any, depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field below a message with every wrong value, as the field's name and the message's values."""
    for field in descriptor.fields:
        name, inner = field.name, field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            wrong = wrong_maps(inner)
        elif field.is_repeated:
            wrong = ["abc", b"abc", 1, None, {"a": "b"}, *([value] for value in wrong_for(field))]
        else:
            wrong = wrong_for(field)
        for value in wrong:
            yield name, {name: value}
        if inner is not None and depth < 4 and not inner.GetOptions().map_entry:
            for below, values in wrong_values(inner, depth + 1):
                yield below, {name: [values] if field.is_repeated else values}


def wrong_maps(entry: Any) -> list[object]:
    """Maps with one wrong key or one wrong value, and what is no map."""
    key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
    good_key, good_value = ("k" if field.type == FieldDescriptor.TYPE_STRING else 1 for field in (key, value))
    keys = [k for k in wrong_for(key) if isinstance(k, str | int | float | bytes)]
    return [
        *({good_key: wrong} for wrong in wrong_for(value)),
        *({wrong: good_value} for wrong in keys),
        *("x", 1, [("a", "b")], None),
    ]


@pytest.mark.parametrize("kind", list(request_types()), ids=lambda kind: kind.DESCRIPTOR.name)
def test_a_value_that_a_field_cannot_hold_is_refused_by_the_fields_name(kind: type[Message]) -> None:
    for name, values in wrong_values(kind.DESCRIPTOR):
        with pytest.raises(InvalidRequestError) as raised:
            build(kind, values)
        (violation,) = raised.value.fields
        assert name in violation.field
        violation.description.encode()


def test_numbers_at_the_ends_of_their_ranges_are_sent_as_they_are() -> None:
    sampling = Sampling(temperature=1, seed=2**64 - 1, top_k=-(2**31), logit_bias={2**31 - 1: 5})
    sent = request_to(GenerationRequest("hi", sampling=sampling)).sampling
    assert (sent.temperature, sent.seed, sent.top_k, dict(sent.logit_bias)) == (
        1.0,
        2**64 - 1,
        -(2**31),
        {2**31 - 1: 5.0},
    )


R = GenerationRequest
REQUESTS: list[tuple[object, str]] = [
    (R("hi", sampling=Sampling(seed=-1)), "sampling.seed"),
    (R("hi", sampling=Sampling(seed=2**64)), "sampling.seed"),
    (R("hi", sampling=Sampling(temperature=math.nan)), "sampling.temperature"),
    (R("hi", sampling=Sampling(logit_bias={"5": -100})), "sampling.logit_bias"),  # type: ignore[dict-item]
    (R("hi", sampling={"seed": 1}), "sampling"),  # type: ignore[arg-type]
    (R(LONE), "prompt.text"),
    (R((ChatMessage("user", LONE),)), "prompt.chat.messages[0].content"),
    (R((ChatMessage(LONE, "x"),)), "prompt.chat.messages[0].role"),
    (R((ChatMessage("user", (TextPart("ok"), TextPart(LONE))),)), "prompt.chat.messages[0].parts[1].text"),
    (R((ChatMessage("user", ("ok",)),)), "prompt.chat.messages[0].parts[0]"),  # type: ignore[arg-type]
    (R(({"role": "user", "content": "hi"},)), "prompt.chat.messages[0]"),  # type: ignore[arg-type]
    (R((ChatMessage("user", "hi"), 5)), "prompt.chat.messages[1]"),  # type: ignore[arg-type]
    (R((1, -(2**31) - 1)), "prompt.tokens.token_ids[1]"),
    (R((1, True)), "prompt.tokens.token_ids[1]"),
    (R((1, "a")), "prompt.tokens.token_ids[1]"),  # type: ignore[arg-type]
    (R(b"hi"), "prompt"),
    (R(None), "prompt"),
    (R("hi", adapters="abc"), "adapters"),  # type: ignore[arg-type]
    (R("hi", adapters=("abc",)), "adapters[0]"),  # type: ignore[arg-type]
    (R("hi", adapters=(AdapterSelection("a", "1"),)), "adapters[0].weight"),  # type: ignore[arg-type]
    (R("hi", stop=Stop(strings="abc")), "stop.stop_strings"),
    (R("hi", stop=Stop(strings=("a", LONE))), "stop.stop_strings[1]"),
    (R("hi", stop=Stop(token_ids=5)), "stop.stop_token_ids"),  # type: ignore[arg-type]
    (R("hi", stop=Stop(max_tokens=2**31)), "stop.max_tokens"),
    (R("hi", stop=Stop(max_tokens=2.0)), "stop.max_tokens"),  # type: ignore[arg-type]
    (R("hi", logprobs=3), "logprobs"),  # type: ignore[arg-type]
    (R("hi", logprobs=Logprobs("3")), "logprobs.num_alternatives"),  # type: ignore[arg-type]
    (R("hi", priority=2**40), "priority"),
    (R("hi", base_only="no"), "base_only"),  # type: ignore[arg-type]
    (R(ChatPrompt((), tools="x")), "prompt.chat.tools"),  # type: ignore[arg-type]
    (R(ChatPrompt((), tools=({"a": {1, 2}},))), "prompt.chat.tools[0]"),
    (R(ChatPrompt((), template_arguments={"x": math.nan})), "prompt.chat.template_arguments"),
    (R(ChatPrompt((), template_arguments={"x": LONE})), "prompt.chat.template_arguments"),
    (R(ChatPrompt((), True, continue_final_message=True)), "prompt.chat.add_generation_prompt"),
    (R((ChatMessage("assistant", tool_calls=(ToolCall("f", 5),)),)), "tool_calls.arguments"),  # type: ignore[arg-type]
    ({"prompt": "hi"}, "request"),
    (None, "request"),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "field"), REQUESTS, ids=[field for _, field in REQUESTS])
def test_a_request_with_a_wrong_value_is_refused_by_the_fields_name(request_: Any, field: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        request_to(request_)
    assert field in raised.value.fields[0].field
    assert field in raised.value.message


def test_every_field_of_a_request_that_is_wrong_is_named() -> None:
    wrong = R("hi", sampling=Sampling(seed=-1, top_p=math.inf), stop=Stop(min_tokens=2**40))
    with pytest.raises(InvalidRequestError) as raised:
        request_to(wrong)
    assert [f.field for f in raised.value.fields] == ["sampling.top_p", "sampling.seed", "stop.min_tokens"]


HOLDERS: dict[type[Any], Callable[[Any], GenerationRequest]] = {
    Sampling: lambda v: R("hi", sampling=v),
    Stop: lambda v: R("hi", stop=v),
    Logprobs: lambda v: R("hi", logprobs=v),
    AdapterSelection: lambda v: R("hi", adapters=(v,)),
    ChatPrompt: R,
    ChatMessage: lambda v: R((v,)),
    GenerationRequest: lambda v: v,
}
NEEDED: dict[type[Any], tuple[Any, ...]] = {
    GenerationRequest: ("hi",),
    AdapterSelection: ("a",),
    ChatPrompt: ((),),
    ChatMessage: ("user",),
}


@pytest.mark.parametrize("kind", list(HOLDERS))
def test_no_field_of_the_clients_types_takes_anything(kind: type[Any]) -> None:
    for field in dataclasses.fields(kind):
        good = kind(*NEEDED.get(kind, ()))
        with pytest.raises(InvalidRequestError):
            request_to(HOLDERS[kind](dataclasses.replace(good, **{field.name: object()})))


@pytest.mark.parametrize("value", [np.array(5), np.array([1, 2]), np.zeros((2, 2)), np.bool_(True), np.float32(0.5)])
@pytest.mark.parametrize("kind", list(HOLDERS))
def test_arrays_are_taken_or_refused_as_anything_else(kind: type[Any], value: Any) -> None:
    for field in dataclasses.fields(kind):
        good = kind(*NEEDED.get(kind, ()))
        with contextlib.suppress(InvalidRequestError):
            request_to(HOLDERS[kind](dataclasses.replace(good, **{field.name: value})))


def test_an_answer_is_bounded_unless_the_request_says_otherwise() -> None:
    def bounds(stop: Stop) -> tuple[int, int]:
        sent = request_to(R("hi", stop=stop)).stop
        return sent.max_tokens, sent.default_max_tokens

    assert bounds(Stop()) == (0, DEFAULT_MAX_TOKENS)
    assert bounds(Stop(max_tokens=0)) == (0, DEFAULT_MAX_TOKENS)
    assert bounds(Stop(max_tokens=7))[0] == 7
    assert bounds(Stop(max_tokens=None)) == (0, 0)


NOWHERE = "127.0.0.1:1"
CLIENTS: dict[type[Any], Callable[[], Any]] = {
    StoreClient: lambda: StoreClient(NOWHERE),
    PlacementClient: lambda: PlacementClient(NOWHERE),
    WorkerClient: lambda: WorkerClient(NOWHERE),
    HotslotClient: lambda: HotslotClient(NOWHERE, NOWHERE),
}
GOOD: dict[str, object] = {
    "folder": Path("/nonexistent"), "reference": "a:b", "name": "a", "tag": "t", "digest": "sha256:" + "0" * 64,
    "repo_id": "a/b", "path": "/x", "spec": None, "request": "hi", "messages": (), "adapters": (),
    "prompt": "hi", "token_ids": (1,), "config": {"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"]},
    "weights": {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((1, 8), np.float32)},
}  # fmt: skip
GOOD_BY_TYPE: dict[object, object] = {str: "a", bytes: b"", int: 1}
# Not sent: folders and files of this machine, functions, and what is optional where None is allowed.
NOT_SENT = {"folder", "path", "on_progress", "self", "tag_etag"}
LOCAL = {"close", "connect", "push", "validate"}


def parameters_of_calls() -> Iterator[Any]:
    for kind in CLIENTS:
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            if name.startswith("_") or name in LOCAL:
                continue
            for parameter in inspect.signature(method).parameters.values():
                if parameter.name not in NOT_SENT:
                    yield pytest.param(kind, name, parameter.name, id=f"{kind.__name__}.{name}-{parameter.name}")


@pytest.mark.parametrize(("kind", "method", "parameter"), list(parameters_of_calls()))
async def test_no_parameter_of_a_call_takes_anything(
    kind: type[Any], method: str, parameter: str, tmp_path: Path
) -> None:
    signature = inspect.signature(getattr(kind, method))
    arguments = {
        p.name: GOOD[p.name] if p.name in GOOD else GOOD_BY_TYPE[p.annotation]
        for p in signature.parameters.values()
        if p.name != "self" and p.default is inspect.Parameter.empty
    }
    client = CLIENTS[kind]()
    try:
        if method == "download_blob":
            arguments["path"] = tmp_path / "blob"
        call = getattr(client, method)(**{**arguments, parameter: object()})
        with pytest.raises(InvalidRequestError):
            await (anext(call) if isinstance(call, AsyncGenerator) else call)
    finally:
        await client.close()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("--seed", "-1", "hi"), "sampling.seed"),
        (("--seed", str(2**64), "hi"), "sampling.seed"),
        (("-n", str(2**31), "hi"), "stop.max_tokens"),
        (("--top-k", str(2**40), "hi"), "sampling.top_k"),
        (("-t", "nan", "hi"), "sampling.temperature"),
        (("--stop", "\udcff", "hi"), "stop.stop_strings[0]"),
        (("--system", "\udcff", "--chat", "hi"), "messages[0].content"),
        (("--timeout", "nan", "hi"), "timeout_s"),
        (("\udcff",), "prompt.text"),
    ],
)
def test_the_command_refuses_a_value_in_one_line(
    arguments: tuple[str, ...], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = () if "--chat" in arguments else ("--raw",)
    assert run(("generate", "--worker", NOWHERE, *raw, *arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert field in err
