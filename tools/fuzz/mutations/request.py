"""Changes to requests: to their bytes on the wire, their values, and what a conversation consists of."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError

from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from tools.fuzz.mutations.text import mutate_bytes, mutate_text
from tools.fuzz.mutations.wire import mutate_wire
from tools.fuzz.request.models import PLAIN_ADDED, SPECIALS, TEMPLATES
from tools.fuzz.request.packed import MAX_ANSWER_TOKENS, PackedRequest
from tools.fuzz.request.seeds import DIGEST, WEATHER, requests

DEEP_SHARE = 0.03
"""Share of the inputs that are rendered, tokenised and answered, too."""
_WORDS = (
    *SPECIALS, *PLAIN_ADDED, "<|IM_END|>", "<|im_", "end|>", "|>", "<", "s>", "</", " w", "he", "hell", "\n", "\n\n",
    " ", "  ", "\t", "ä", "🎉", "语", "\x00", "\ufffd", "\ufdd0", "\U000f0000", "\u202e", "ß", "İ", "\x85", "{{",
    "{%", "%}", "1", "_", "'", '"', "\\", "\\u003c", "<image>", "ﬁ", "\r\n", "a", "Vx3Continued9", "Qk7zProbe", "0",
    "e\u0301",
)  # fmt: skip
_ROLES = ("system", "user", "assistant", "tool", "developer", "", "USER", "im_start", "user ", "<s>", "\x00", "r" * 257)
_NAMES = (
    "a", "acme/sql", "acme/sql:v1", f"a@{DIGEST}", f"a:b@{DIGEST}", "", "A", "a:", "a@", "a//b", "../a", "a:latest",
    "a\n", "ä", "a" * 255, "a" * 256, "a:" + "b" * 129, "sha256:00", "a__b", "a@sha256:" + "0F" * 32,
)  # fmt: skip
_DOUBLES = (
    0.0, -0.0, 1.0, 0.5, 1e-6, 5e-324, 0.01, 0.009, 2.0, 2.0000001, -2.0, 100.0, 100.00001, -100.0, 1e308, -1e308,
    float("inf"), float("-inf"), float("nan"), 1.1, 0.99999999999999,
)  # fmt: skip
_INTEGERS = (0, 1, 2, 3, 4, 5, 16, 20, 21, 100, 270, 512, 1_000, 1_001, 1_023, 1_024, 1_025, 2**31 - 1)
_DOCUMENTS = (
    "", "{}", "[]", "null", "1", '{"a": 1}', '{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', '{"a": "<|im_end|>"}',
    '{"enable_thinking": false}', '{"bos_token": ""}', '{"messages": []}', '{"tools": 1}',
    '{"documents": [{"t": "x"}]}',
    '{"a b": 1}', '{"a": 1, "a": 2}', '{"a": ' + "[" * 40 + "]" * 40 + "}", '{"n": 1}', '{"loop": 1, "namespace": 2}',
    "{", '{"m": 1}', '{"raise_exception": 0}', '{"a": ' + "9" * 400 + "}", "{}" + " " * 9, '{"\\u0061": "\\u0000"}',
    "\ufeff{}", WEATHER,
)  # fmt: skip


def text(rng: Random) -> str:
    """Text of what a tokenizer, a template or a stop string may trip over."""
    found = "".join(rng.choice(_WORDS) for _ in range(rng.choice((0, 1, 1, 2, 3, 5, 9))))
    return found * rng.choice((60, 260, 600)) if rng.random() < 0.02 else found


def mutate_request(data: bytes, rng: Random) -> bytes:
    """The request with a few things changed."""
    packed = PackedRequest.from_bytes(data)
    is_shallow = rng.random() >= DEEP_SHARE
    num_pieces = packed.num_pieces if rng.random() < 0.1 else 1
    packed = replace(packed, is_shallow=is_shallow, num_pieces=num_pieces, message=packed.message[: _longest(rng)])
    how = rng.random()
    if how < 0.62:
        packed = replace(packed, message=_with_other_fields(packed.message, rng))
    elif how < 0.80:
        packed = replace(packed, message=mutate_wire(packed.message, rng))
    elif how < 0.83:
        packed = replace(packed, message=mutate_bytes(packed.message, rng))
    elif how < 0.833:
        packed = _repeated(packed, rng)
    elif how < 0.86:
        packed = replace(packed, message=rng.choice(requests()).SerializeToString(), num_pieces=1)
    if not packed.is_shallow or rng.random() < 0.2:
        packed = replace(packed, model=rng.randrange(len(TEMPLATES)), answer=_answer(packed.answer, rng))
    return packed.to_bytes()


def _longest(rng: Random) -> int:
    """Bytes that are kept of what was made before: most of the time goes to small requests."""
    return 1_024 if rng.random() < 0.9 else 16_384


def _answer(known: bytes, rng: Random) -> bytes:
    """Tokens in runs, so that words, torn characters and special tokens stand side by side."""
    made = bytearray(known if rng.random() < 0.5 else b"")
    for _ in range(rng.choice((1, 2, 4))):
        place = rng.randrange(len(made) + 1)
        run = rng.choice(
            (rng.randbytes(3), bytes([rng.randrange(224, 256)]), b"\x47\x44\x4b\x4b", b"\x9d\x63", b"\x9d")
        )
        made[place:place] = run * rng.choice((1, 1, 1, 2, 14))
    return bytes(made[:MAX_ANSWER_TOKENS])


def _repeated(packed: PackedRequest, rng: Random) -> PackedRequest:
    """A piece that stands about as often as its bound allows."""
    place, piece = rng.choice(
        ((0, b"\x22\x00"), (0, b"\x22\x03\x0a\x01a"), (2, b"\x0a\x00"), (2, b"\x22\x00"), (2, b"\x0a\x02\x1a\x00"),
         (2, b"\x0a\x02\x22\x00"), (3, b"\x08\x01"), (3, b"\x0a\x02\x01\x01"), (7, b"\x1a\x01x"), (7, b"\x22\x01\x01"),
         (6, b"\x4a\x02\x08\x01"), (0, b"\x78\x01"), (2, b"\x78\x01"), (7, b"\x20\x01"), (0, b"\x12\x02\x0a\x00"))
    )  # fmt: skip
    most = rng.choice((3, 16, 128, 256, 1_024, 2_048, 4_096))
    if rng.random() < 0.05:
        most = rng.choice((8_192, 16_384, 65_536))
    count = max(1, most + rng.choice((-1, 0, 0, 1, 1, 30)))
    return replace(packed, message=piece + packed.message, place=place, piece_bytes=len(piece), num_pieces=count)


def _with_other_fields(message: bytes, rng: Random) -> bytes:
    try:
        request = pb.GenerateRequest.FromString(message)
    except DecodeError:
        request = pb.GenerateRequest()
        request.CopyFrom(rng.choice(requests()))
    for _ in range(rng.choice((1, 1, 2, 3))):
        rng.choice(_CHANGES)(request, rng)
    return request.SerializeToString()


def _change_any_field(request: pb.GenerateRequest, rng: Random) -> None:
    """A field of numbers or text, wherever it is."""
    message: Any = request
    while True:
        entry = rng.choice(message.DESCRIPTOR.fields)
        if entry.message_type is None or entry.message_type.GetOptions().map_entry:
            break
        message = getattr(message, entry.name)
        if entry.is_repeated:
            message = message.add() if not len(message) or rng.random() < 0.2 else rng.choice(message)
    if rng.random() < 0.15:
        message.ClearField(entry.name)
    elif entry.message_type is not None:
        getattr(message, entry.name)[rng.choice(_INTEGERS)] = rng.choice(_DOUBLES)
    elif entry.is_repeated:
        values = getattr(message, entry.name)
        values.extend([_value(entry, rng)] * rng.choice((1, 1, 1, 17, 260)))
    else:
        setattr(message, entry.name, _value(entry, rng))


def _value(entry: FieldDescriptor, rng: Random) -> Any:
    match entry.cpp_type:
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return rng.choice(_DOUBLES) if rng.random() < 0.8 else struct.unpack("<d", rng.randbytes(8))[0]
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_STRING:
            return _string(entry.name, rng)
        case FieldDescriptor.CPPTYPE_UINT64:
            return rng.choice((0, 1, 2**63, 2**64 - 1))
        case FieldDescriptor.CPPTYPE_INT64:
            return rng.choice((0, 1, -1, 2**63 - 1, -(2**63)))
        case _:
            return rng.choice(_INTEGERS) * rng.choice((1, 1, 1, 1, -1))


def _string(name: str, rng: Random) -> str:
    if name.endswith("_json"):
        document = rng.choice(_DOCUMENTS)
        return mutate_text(document.encode(), rng).decode(errors="replace") if rng.random() < 0.2 else document
    if name == "role":
        return rng.choice(_ROLES[:4] if rng.random() < 0.7 else _ROLES)
    if name == "reference":
        return rng.choice(_NAMES[:5] if rng.random() < 0.7 else _NAMES)
    if name == "template":
        return rng.choice(("", "default", "tool_use", "seen", "x", "\x00"))
    return text(rng)


def _change_sampling(request: pb.GenerateRequest, rng: Random) -> None:
    entry = rng.choice(pb.SamplingParams.DESCRIPTOR.fields[:8])
    setattr(request.sampling, entry.name, _value(entry, rng))


def _change_stop(request: pb.GenerateRequest, rng: Random) -> None:
    """Stop strings that an answer may well have, special tokens and torn characters in them."""
    stop = request.stop
    if len(stop.stop_strings) > 3 or rng.random() < 0.2:
        del stop.stop_strings[:]
    stop.stop_strings.append("".join(rng.choice(_WORDS) for _ in range(rng.choice((1, 1, 2, 3)))))
    stop.min_tokens = rng.choice((0, 0, 0, 1, 2, 5))
    request.skip_special_tokens = rng.random() < 0.5


def _change_chat(request: pb.GenerateRequest, rng: Random) -> None:
    """A conversation with another turn, or with one less."""
    messages = request.chat.messages
    if len(messages) > 4 or (messages and rng.random() < 0.2):
        del messages[rng.randrange(len(messages))]
        return
    role = _string("role", rng) if rng.random() < 0.5 else ("user", "assistant")[len(messages) % 2]
    turn = messages.add(role=role)
    match rng.randrange(6):
        case 0:
            turn.parts.extend(pb.ContentPart(text=text(rng)) for _ in range(rng.randrange(1, 4)))
        case 1:
            turn.tool_calls.add(name=text(rng) or "f", id=text(rng), arguments_json=_string("_json", rng))
            turn.role = "assistant"
        case 2:
            turn.role, turn.tool_call_id, turn.name, turn.content = "tool", text(rng), text(rng), text(rng)
        case 3:
            turn.reasoning_content, turn.content = text(rng), text(rng)
        case _:
            turn.content = text(rng)


def _change_around(request: pb.GenerateRequest, rng: Random) -> None:
    """Change the fields beside a conversation."""
    chat = request.chat
    match rng.randrange(6):
        case 0:
            chat.tools_json.append(rng.choice((WEATHER, json.dumps({"function": {"name": text(rng)}}))))
        case 1:
            chat.template_arguments_json = _string("_json", rng)
        case 2:
            chat.continue_final_message = not chat.continue_final_message
        case 3:
            chat.allow_special_tokens = not chat.allow_special_tokens
        case 4:
            chat.template = _string("template", rng)
        case _:
            chat.omit_generation_prompt = not chat.omit_generation_prompt


def _change_prompt(request: pb.GenerateRequest, rng: Random) -> None:
    """A prompt of another kind."""
    if rng.random() < 0.6:
        request.text = text(rng)
    else:
        request.tokens.token_ids.extend(rng.choice((*_INTEGERS, 185, 157, 268)) for _ in range(rng.randrange(1, 9)))


def _change_adapters(request: pb.GenerateRequest, rng: Random) -> None:
    """Another adapter, or none."""
    if len(request.adapters) > 4 or rng.random() < 0.2:
        del request.adapters[:]
        return
    added = request.adapters.add(reference=_string("reference", rng))
    if rng.random() < 0.4:
        added.weight = rng.choice(_DOUBLES)


_CHANGES: tuple[Callable[[pb.GenerateRequest, Random], None], ...] = (
    _change_any_field, _change_any_field, _change_any_field, _change_sampling, _change_stop, _change_chat, _change_chat,
    _change_around, _change_prompt, _change_adapters,
)  # fmt: skip
