"""Hypothesis strategy for requests: messages drawn field by field, mostly within bounds."""

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from tools.fuzz.request.models import SPECIALS, TEMPLATES
from tools.fuzz.request.packed import PackedRequest
from tools.fuzz.request.seeds import WEATHER

_TEXTS = st.one_of(
    st.text(max_size=8),
    st.lists(st.sampled_from([*SPECIALS, "hell", " w", "\n", "<", "|>", "ä", "🎉"]), max_size=5).map("".join),
)
_BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "role": st.sampled_from(["system", "user", "user", "assistant", "tool", ""]),
    "reference": st.sampled_from(["a", "acme/sql:v1", "b", "A", ""]),
    "template": st.sampled_from(["", "", "default", "tool_use"]),
    "tools_json": st.sampled_from([WEATHER, "{}", "[]"]),
    "arguments_json": st.sampled_from(["", '{"a": [1, "b"]}', "1"]),
    "template_arguments_json": st.sampled_from(["", '{"enable_thinking": false}', '{"a": NaN}']),
    "token_ids": st.integers(0, 275),
    "stop_token_ids": st.integers(0, 275),
}
_BY_TYPE: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_STRING: _TEXTS,
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_DOUBLE: st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1), st.floats()),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.one_of(st.integers(0, 4), st.integers(-(2**63), 2**63 - 1)),
    FieldDescriptor.CPPTYPE_INT32: st.one_of(st.integers(0, 4), st.integers(0, 4), st.integers(-(2**31), 2**31 - 1)),
}


@st.composite
def packed_requests(draw: st.DrawFn) -> bytes:
    """Packed requests."""
    message: Any = pb.GenerateRequest()
    _fill(draw, message, message.DESCRIPTOR)
    if message.WhichOneof("prompt") is None and draw(st.integers(0, 9)):
        message.text = "x" + draw(_TEXTS)
    answer = bytes(draw(st.lists(st.integers(0, 255), max_size=12)))
    return PackedRequest(message.SerializeToString(), draw(st.integers(0, len(TEMPLATES) - 1)), answer).to_bytes()


def _fill(draw: st.DrawFn, message: Any, kind: Descriptor) -> None:
    """Set a few of a message's fields."""
    names = [entry.name for entry in kind.fields]
    for name in draw(st.lists(st.sampled_from(names), max_size=min(4, len(names)), unique=True)):
        entry = kind.fields_by_name[name]
        if entry.message_type is not None and entry.message_type.GetOptions().map_entry:
            getattr(message, name)[draw(st.integers(0, 275))] = draw(st.floats(-100, 100))
        elif entry.message_type is not None:
            inner = getattr(message, name)
            for _ in range(draw(st.integers(1, 3)) if entry.is_repeated else 1):
                made = inner.add() if entry.is_repeated else inner
                made.SetInParent()
                _fill(draw, made, entry.message_type)
        else:
            values = _BY_NAME.get(name, _BY_TYPE[entry.cpp_type])
            if entry.is_repeated:
                getattr(message, name).extend(draw(st.lists(values, max_size=4)))
            else:
                setattr(message, name, draw(values))
