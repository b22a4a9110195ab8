"""One request as a worker takes it, without sockets: bounds, values, prompt, and an answer to it."""

from hotslot.codec import from_proto
from hotslot.contract.generation import ChatPrompt, GenerationRequest
from hotslot.errors import HotslotError, InvalidRequestError, PromptTooLongError
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from shared.server.wire_scan import Refused, RequestDecoder
from tools.fuzz.request.answer_oracle import check_answer
from tools.fuzz.request.bounds_oracle import check_refusal
from tools.fuzz.request.error_oracle import outcome_of
from tools.fuzz.request.models import LIMITS, answer_tokens, encode, model
from tools.fuzz.request.packed import PackedRequest
from tools.fuzz.request.prompt_oracle import check_length, check_tokens
from tools.fuzz.request.round_trip import check_round_trips
from tools.fuzz.request.value_oracle import check_values
from tools.fuzz.target import FuzzOutcome, require
from worker_service.front.validation import check, check_prompt_logprobs, check_prompt_tokens

DECODER = RequestDecoder(pb.GenerateRequest.DESCRIPTOR, pb.GenerateRequest.FromString)
SMALL_BYTES = 2_048
"""Size of messages that are far from every bound."""


def run_request(data: bytes) -> FuzzOutcome:
    """The bytes of a GenerateRequest, and the tokens of its answer."""
    packed = PackedRequest.from_bytes(data)
    wire = packed.wire()
    message = DECODER(wire)
    is_refused = isinstance(message, Refused)
    if is_refused or len(wire) > SMALL_BYTES or not packed.is_shallow:
        check_refusal(wire, _decoded(wire) if is_refused else message, is_refused=is_refused)
    is_sent = not packed.is_shallow or len(data) % 8 == 0
    if isinstance(message, Refused):
        require(type(message.error) is InvalidRequestError, f"refused undecoded with {message.error!r}")
        return outcome_of(message.error, is_sent=is_sent)
    request = from_proto(GenerationRequest, message)
    found = model(packed.model)
    try:
        selections = check(request, LIMITS)
        check_values(request, selections)
        if packed.is_shallow:
            return FuzzOutcome(frozenset())
        prompt = request.prompt
        assert isinstance(prompt, str | ChatPrompt | tuple), "it passed"
        token_ids = encode(found, prompt)
        check_prompt_tokens(prompt, token_ids, LIMITS, found.encoder.token_text)
        check_prompt_logprobs(request, len(token_ids))
    except HotslotError as exc:
        if isinstance(exc, PromptTooLongError):
            assert isinstance(request.prompt, str | ChatPrompt | tuple), "it has a length"
            check_length(request.prompt, exc)
        return outcome_of(exc, is_sent=is_sent)
    check_tokens(found, prompt, token_ids)
    check_answer(found, request, token_ids, answer_tokens(packed.answer))
    check_round_trips(message, request, selections)
    return FuzzOutcome(frozenset())


def _decoded(wire: bytes) -> pb.GenerateRequest | None:
    try:
        return pb.GenerateRequest.FromString(wire)
    except Exception:  # noqa: BLE001 (protobuf's own error, whose class depends on its implementation)
        return None
