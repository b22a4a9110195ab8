"""Look-ups in the results of a run, and what follows from several of them. Pure."""

from collections.abc import Mapping
from typing import Any

from tools.bench.cases import CaseKind
from tools.bench.peers.roster import ENGINE, PeerSpec
from tools.bench.smollm import ADAPTER_BYTES_A_RANK, KV_BYTES, WEIGHT_BYTES

SHORT = 64
"""Context of the decode cases that others are compared with."""


class BenchFigures:
    """The results of the parts; a figure that is not there is None."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        self._parts: Mapping[str, Any] = results.get("parts", {})
        side_by_side = self._parts.get("side_by_side", {}).get("result", {})
        self.cases: list[dict[str, Any]] = side_by_side.get("cases", [])
        self._cores = str(side_by_side.get("cores", ""))

    def get(self, part: str, *path: str) -> float | None:
        """A number of a part's result."""
        value = self._at(part, *path)
        return float(value) if isinstance(value, int | float) else None

    def text(self, part: str, *path: str) -> str:
        """A text of a part's result; empty where it is not there."""
        return str(self._at(part, *path) or "")

    def table(self, part: str, *path: str) -> dict[str, Any]:
        """A part's result, or what lies in it; empty where it is not there."""
        value = self._at(part, *path)
        return value if isinstance(value, dict) else {}

    def _at(self, part: str, *path: str) -> Any:
        value: Any = self._parts.get(part, {}).get("result")
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def rate(
        self, spec: PeerSpec, rows: int, adapters: int, context: int = SHORT, *, all_cores: bool = True, rank: int = 16
    ) -> float | None:
        """Tokens a second of a peer while it decodes."""
        wanted = {
            "rows": rows, "adapters": adapters, "context": context, "kind": CaseKind.DECODE.value,
            "all_cores": all_cores, "rank": rank,
        }  # fmt: skip
        return self._median(spec.name, wanted)

    def prompts(self, spec: PeerSpec, context: int, *, with_adapters: bool) -> float | None:
        """Prompt tokens a second of a peer."""
        wanted = {"context": context, "kind": CaseKind.PROMPT.value, "with_adapters": with_adapters}
        return self._median(spec.name, wanted)

    def _median(self, name: str, wanted: Mapping[str, object]) -> float | None:
        for case in self.cases:
            facts = {**case["case"], "with_adapters": case["case"]["adapters"] > 0}
            if all(facts[key] == value for key, value in wanted.items()) and name in case["peers"]:
                return float(case["peers"][name]["tok_s"]["median"])
        return None

    def read_gb_s(self, *, all_cores: bool = True) -> float | None:
        """Measured speed of reading memory."""
        return self.get("limits", self._cores if all_cores else "1", "read_gb_s")

    def read_ms(self, num_bytes: float) -> float | None:
        """Time that all cores need for reading so many bytes."""
        gb_s = self.read_gb_s()
        return None if not gb_s else num_bytes / gb_s / 1e6

    def step_ms(self, rows: int, adapters: int, context: int = SHORT) -> float | None:
        """Time of a step in process."""
        rate = self.rate(ENGINE, rows, adapters, context)
        return None if rate is None else 1e3 * rows / rate

    def adapters_ms(self, count: int) -> float | None:
        """Time that so many adapters add to a step of as many rows."""
        return _less(self.step_ms(count, count), self.step_ms(count, 0))

    def adapters_bytes_ms(self, count: int, rank: int = 16) -> float | None:
        """Time of reading them."""
        return self.read_ms(count * rank * ADAPTER_BYTES_A_RANK)

    def context_ms(self, rows: int, context: int) -> float | None:
        """Time that a longer context adds to a step."""
        return _less(self.step_ms(rows, 0, context), self.step_ms(rows, 0))

    def context_bytes_ms(self, rows: int, context: int) -> float | None:
        """Time of reading its keys and values."""
        return self.read_ms(rows * (context - SHORT) * KV_BYTES)

    def weights_bytes_ms(self) -> float | None:
        """Time of reading the model's weights once."""
        return self.read_ms(WEIGHT_BYTES)

    def largest(self, part: str, *path: str) -> float | None:
        """The largest of several numbers of a part's result."""
        return max(self.table(part, *path).values(), default=None)


def _less(whole: float | None, part: float | None) -> float | None:
    return None if whole is None or part is None else whole - part
