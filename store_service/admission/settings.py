"""The limits within which admission works."""

from dataclasses import dataclass

from hotslot.formats.safetensors_header import MAX_ADAPTER_HEADER_BYTES, MAX_ADAPTER_TENSORS, HeaderLimits


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """Limits of a checkpoint."""

    max_rank: int = 256
    """Largest rank of any module."""
    max_weights_bytes: int = 4 * 1024**3
    """Size of the weights file."""
    max_config_bytes: int = 1024 * 1024
    """Size of adapter_config.json."""
    max_tensor_bytes: int = 512 * 1024**2
    """Size of one tensor."""
    max_header_bytes: int = MAX_ADAPTER_HEADER_BYTES
    max_tensors: int = MAX_ADAPTER_TENSORS
    max_match_s: float = 5.0
    """Processor time in which the expressions of a config are matched; those of real ones take milliseconds."""
    max_violations: int = 1_000
    """After so many, the rest is only counted."""

    @property
    def header(self) -> HeaderLimits:
        """The limits of the safetensors header."""
        return HeaderLimits(self.max_header_bytes, self.max_tensors)
