"""The targets: the header of a weights file, a config, a whole checkpoint, and a request to generate."""

import json
import tempfile
from functools import cache
from pathlib import Path

from hotslot.errors import InvalidAdapterError, Violation
from hotslot.formats.safetensors_header import HeaderLimits, parse_header
from hotslot.formats.strict_json import parse_object
from store_service.admission.admit import Checkpoint, admit, base_model_name_of
from store_service.admission.config import parse_config
from store_service.admission.patterns import PatternError
from store_service.admission.report import as_json, as_text
from store_service.admission.settings import AdmissionLimits
from tests.support.checkpoints import base_spec, fused_base_spec
from tools.fuzz import oracle, seeds
from tools.fuzz.mutations.checkpoint import mutate_checkpoint
from tools.fuzz.mutations.config import mutate_config
from tools.fuzz.mutations.header import mutate_header
from tools.fuzz.mutations.request import mutate_request
from tools.fuzz.packed import Packed, Shape
from tools.fuzz.request.run import run_request
from tools.fuzz.request.seeds import packed_requests
from tools.fuzz.target import FuzzOutcome, FuzzTarget, OracleError, outcome_of, require

BASE = base_spec()
FUSED_BASE = fused_base_spec()
PATHS = tuple(
    path
    for path in BASE.by_path()
    if path.endswith(("0.self_attn.q_proj", "1.self_attn.v_proj", "0.mlp.down_proj", "lm_head"))
)
"""A few modules of every kind, on which settings are compared."""
HEADER_LIMITS = HeaderLimits(max_header_bytes=8192, max_tensors=40)
LIMITS = AdmissionLimits(
    max_rank=8, max_weights_bytes=60_000, max_config_bytes=4096, max_tensor_bytes=2048, max_header_bytes=16_384,
    max_tensors=60, max_violations=50,
)  # fmt: skip
"""Small, so that small inputs reach every limit."""


def run_header(data: bytes) -> FuzzOutcome:
    """A weights file whose header is read."""
    try:
        header = parse_header(data, len(data), "fuzz.safetensors", HEADER_LIMITS)
    except InvalidAdapterError as exc:
        require(bool(exc.violations), "a refusal without a violation")
        return outcome_of(exc.violations)
    oracle.check_header(data, header, scratch_folder() / "header.safetensors")
    return FuzzOutcome(frozenset())


def run_config(data: bytes) -> FuzzOutcome:
    """An adapter_config.json that is parsed, and whose settings are used for every module of a base."""
    config = parse_config(data)
    settings, violations = config.settings, config.violations
    require(settings is not None or bool(violations), "no settings, and no reason why")
    json.loads(config.shown_json)
    if settings is not None:
        try:
            oracle.check_settings(parse_object(data), settings, PATHS)
        except PatternError as exc:
            return outcome_of(
                [Violation.of("UNSUPPORTED_PATTERN", "config", "an expression", "a bounded one", str(exc))]
            )
    return outcome_of(violations)


def run_checkpoint(data: bytes) -> FuzzOutcome:
    """A checkpoint that is admitted to a small base model."""
    packed, folder = Packed.from_bytes(data), scratch_folder()
    files = packed.files()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    checkpoint = Checkpoint({name: folder / name for name in files})
    written = bytearray()
    base = FUSED_BASE if Shape.FUSED_BASE in packed.shape else BASE
    verdict = admit(checkpoint, base, LIMITS, written.extend)
    json.loads(as_json(verdict))
    require(bool(as_text(verdict, "fuzz")), "a report without text")
    try:
        base_model_name_of(checkpoint, LIMITS)
    except InvalidAdapterError as exc:
        require(set(exc.violations) <= set(verdict.violations), "without a base more is wrong than with one")
    if verdict.manifest is None:
        require(bool(verdict.violations), "refused, and no reason why")
        try:
            verdict.require()
        except InvalidAdapterError as exc:
            require(exc.violations == verdict.violations, "the error says less than the verdict")
        else:
            raise OracleError("a verdict without a manifest gave one")
        return outcome_of(verdict.violations)
    require(not verdict.violations, "admitted in spite of violations")
    json.loads(checkpoint.config(LIMITS).shown_json)
    oracle.check_version(packed, verdict.manifest, bytes(written), base)
    return FuzzOutcome(frozenset())


@cache
def scratch_folder() -> Path:
    """A folder of this process, in memory where the system has such a place."""
    memory = Path("/dev/shm")
    folder = tempfile.TemporaryDirectory(prefix="hotslot-fuzz-", dir=memory if memory.is_dir() else None)
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: list["tempfile.TemporaryDirectory[str]"] = []

TARGETS = {
    target.name: target
    for target in (
        FuzzTarget("header", run_header, mutate_header, seeds.headers),
        FuzzTarget("config", run_config, mutate_config, seeds.configs),
        FuzzTarget("checkpoint", run_checkpoint, mutate_checkpoint, seeds.checkpoints),
        FuzzTarget("request", run_request, mutate_request, packed_requests),
    )
}
