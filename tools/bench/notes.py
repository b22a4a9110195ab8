"""Notes on targets that are missed: where the time goes and what was tried, by the key of the target's line."""

from collections.abc import Mapping

_REST = (
    "what memory does not explain is the last column below: wrapper code of each layer's graph, attention, norms and "
    "sampling. One compiled entry for all layers took two fifths of it away in a trial, base only"
)
NOTES: Mapping[str, str] = {
    "1 row / best": f"{_REST}.",
    "8 rows / best": f"{_REST}.",
    "1 row, adapter / llama.cpp": f"{_REST}; the adapter's own share is in the column before.",
    "adapters' time / bytes": "A and B of every slot that is on are read in pieces for each chunk of outputs. Tried "
    "and dropped, as no faster: fetching them ahead while the base is computed, larger chunks, sums folded side by "
    "side (docs/decisions/model.md).",
    "swap / copy": "an adapter goes to 420 places, A and B of each module, in one call of the kernels; the plain copy "
    "goes to one.",
    "verified stream / raw": "both ends digest what they stream, on the cores that the stream itself needs; on two "
    "cores that is not free. What chunks pass by: docs/decisions/hotslot.md.",
    "attention at 512": "keys and values of a row are read block by block through its table "
    "(worker_service/model/cpu/attention.h).",
    "attention at 1900": "keys and values of a row are read block by block through its table "
    "(worker_service/model/cpu/attention.h).",
}
