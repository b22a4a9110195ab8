"""Seed corpus of requests: realistic ones of every kind, each for several models, and a few that are broken."""

import json
from functools import cache
from typing import Any

from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from tests.support.request_messages import varint
from tools.fuzz.request.models import BACKEND, TEMPLATES
from tools.fuzz.request.packed import PackedRequest

DIGEST = "sha256:" + "0f" * 32
WEATHER = json.dumps({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}})
ANSWERS = ("hell w", "so <|im_end|> ä", "<tool_call>{", "ä🎉 he<|user|>ll", "\n\nhe</think>")


def chat(*turns: tuple[str, str], **more: Any) -> pb.ChatPrompt:
    """A conversation."""
    return pb.ChatPrompt(messages=[pb.ChatMessage(role=role, content=content) for role, content in turns], **more)


@cache
def requests() -> list[pb.GenerateRequest]:
    """Every request, the sound ones first."""
    part = pb.ContentPart
    call = pb.ToolCall(id="c1", name="weather", arguments_json='{"city": "Oslo", "days": [1, 2.5]}')
    tools = chat(("user", "how is it?"), tools_json=[WEATHER], template_arguments_json='{"enable_thinking": false}')
    tools.messages.add(role="assistant", tool_calls=[call], reasoning_content="hm")
    tools.messages.add(role="tool", content="fine", tool_call_id="c1", name="weather")
    parts = chat(("system", "be kind"))
    parts.messages.add(role="user", parts=[part(text="one"), part(text="two <image>")])
    talk = (("user", "hello"), ("assistant", "hi there"), ("user", "what is 1 + 1?"))
    return [
        pb.GenerateRequest(text="hello world"),
        pb.GenerateRequest(
            text="<s>hell <|im_end|> w", skip_special_tokens=False, stop=pb.StopConditions(max_tokens=9)
        ),
        pb.GenerateRequest(chat=chat(*talk)),
        pb.GenerateRequest(chat=chat(("user", "a <|im_end|>\n<|im_start|>system b"))),
        pb.GenerateRequest(chat=chat(("user", "a <|user|> b"), allow_special_tokens=True, omit_generation_prompt=True)),
        pb.GenerateRequest(chat=chat(("user", "go"), ("assistant", "so "), continue_final_message=True)),
        pb.GenerateRequest(chat=tools),
        pb.GenerateRequest(chat=parts),
        pb.GenerateRequest(chat=chat(*talk[:1], template="seen")),
        pb.GenerateRequest(tokens=pb.TokenPrompt(token_ids=[1, 2, 3, 200, 255])),
        pb.GenerateRequest(
            text="hello",
            adapters=[pb.AdapterSelection(reference="acme/sql:v1"), pb.AdapterSelection(reference="b", weight=-0.5)],
            sampling=pb.SamplingParams(
                temperature=0.7, top_k=40, top_p=0.9, min_p=0.05, seed=2**64 - 1, repetition_penalty=1.1,
                presence_penalty=0.5, frequency_penalty=-0.5, logit_bias={1: 2.5, 7: -100},
            ),
            logprobs=pb.LogprobOptions(enabled=True, num_alternatives=5, prompt=True),
            request_id="r-1", priority=-3, num_choices=2,
        ),
        pb.GenerateRequest(
            text="hell", base_only=True,
            stop=pb.StopConditions(
                max_tokens=20, min_tokens=3, stop_strings=["<|im_end|>", "w\n", "ä", "l<tool_call>"],
                stop_token_ids=[3], ignore_eos=True,
            ),
        ),
        pb.GenerateRequest(
            text="x", stop=pb.StopConditions(default_max_tokens=512, stop_strings=["he", "hell"]),
            adapters=[pb.AdapterSelection(reference=f"a@{DIGEST}")],
        ),
        pb.GenerateRequest(text="ends in <beyond>"),
        pb.GenerateRequest(text="long " * 300),
        pb.GenerateRequest(),
    ]  # fmt: skip


def answer(text: str) -> bytes:
    """An answer's tokens as bytes; the special ones as far as bytes go."""
    return bytes(token_id for token_id in BACKEND.encode(text, add_special_tokens=False).ids if token_id < 256)


def packed_requests() -> list[bytes]:
    """Packed requests, chats for every model."""
    made = []
    for index, request in enumerate(requests()):
        data = request.SerializeToString()
        tokens = answer(ANSWERS[index % len(ANSWERS)]) + b"\xf0\xf5"
        numbers = range(len(TEMPLATES)) if request.HasField("chat") else (0,)
        made += [PackedRequest(data, number, tokens).to_bytes() for number in numbers]
    entry = varint(4 << 3 | 2) + b"\0"
    made.append(PackedRequest(entry + b"\x0a\x01x", piece_bytes=len(entry), num_pieces=2_049).to_bytes())
    made.append(PackedRequest(b"\x0a\0\x0a\x01x", place=2, piece_bytes=2, num_pieces=8_193).to_bytes())
    made.append(PackedRequest(b"\x08\x01", place=3, piece_bytes=2, num_pieces=8_200).to_bytes())
    made.append(PackedRequest(b"\x78\x01\x0a\x01x", piece_bytes=2, num_pieces=2_200).to_bytes())
    return made
