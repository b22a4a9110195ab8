"""Admission of one checkpoint: config, header, tensors and values in, a manifest or every violation out."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from hotslot.contract.admission_warning import AdmissionWarning
from hotslot.errors import (
    BaseModelMismatchError,
    InvalidAdapterError,
    RankTooLargeError,
    UnsupportedAdapterError,
    Violation,
)
from hotslot.formats.base_spec import BaseSpec
from hotslot.formats.companions import MAX_SUMMARY_BYTES, SUMMARY_FILE, Companions, companions_from_json
from hotslot.formats.file_names import CONFIG_FILE, WEIGHTS_FILES
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.formats.pickle_advice import conversion_command
from hotslot.formats.safetensors_header import Header, read_header
from hotslot.formats.strict_json import StrictJsonError
from store_service.admission.beside import judge_companions
from store_service.admission.checks import check_tensors
from store_service.admission.config import ReadConfig, parse_config
from store_service.admission.held import HeldFile
from store_service.admission.known_plans import KnownPlans, PlanSearch
from store_service.admission.match_budget import MatchBudgetError, bounded_matching
from store_service.admission.normalise import Sink, plan_weights, write_weights
from store_service.admission.patterns import PatternError
from store_service.admission.settings import AdmissionLimits
from store_service.admission.shards import check_shards, open_shards, shard_names
from store_service.admission.values import check_copies, check_finite, check_tie, judged_rows
from store_service.admission.written_digest import OwnDigest, WrittenDigest

NO_EFFECT = AdmissionWarning(
    "NO_EFFECT",
    "this adapter changes nothing, so its answers are the base's: all of its alphas, or of its weights on one side (B, "
    "as before the first step of training), are zero; was another checkpoint meant?",
)
PICKLE_FILES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")


@dataclass(frozen=True)
class Checkpoint:
    """The files of one checkpoint, which no process changes any more."""

    files: dict[str, Path]
    """By their name in the checkpoint's folder; only names that admission knows are opened."""
    companions: Companions | None = None
    """Files beside the weights; None where these are to be read from their summary, if there is one."""
    held: HeldFile | None = None
    """The one file with the tensors, where it is in memory and none of `files`."""
    _configs: dict[int, ReadConfig] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The config by how large it may be."""

    @property
    def weights_name(self) -> str | None:
        """The one file with the tensors; None where there are several, or none."""
        held = (self.held.name,) if self.held is not None else ()
        return next((name for name in WEIGHTS_FILES if name in self.files or name in held), None)

    def config(self, limits: AdmissionLimits) -> ReadConfig:
        """The checkpoint's config, which is read and parsed once."""
        max_bytes = limits.max_config_bytes
        if max_bytes not in self._configs:
            self._configs[max_bytes] = _read_config(self.files.get(CONFIG_FILE), max_bytes)
        return self._configs[max_bytes]


@dataclass(frozen=True)
class Verdict:
    """Verdict of admission: a manifest when there are no violations."""

    violations: tuple[Violation, ...]
    manifest: Manifest | None
    warnings: tuple[AdmissionWarning, ...] = ()
    """No reasons to refuse it."""

    def require(self) -> Manifest:
        """The manifest; raises the most telling kind of InvalidAdapterError, with all violations."""
        if self.manifest is None:
            raise error_class_of(self.violations)(self.violations)
        return self.manifest


def admit(
    checkpoint: Checkpoint,
    base: BaseSpec,
    limits: AdmissionLimits,
    write: Sink | None = None,
    reserve: Callable[[int], object] | None = None,
    written_digest: WrittenDigest | None = None,
    *,
    was_admitted: bool = False,
    plans: KnownPlans | None = None,
) -> Verdict:
    """Check a checkpoint against a base model, writing its normalised weights on the way.

    `reserve` is told their size before the first byte is written, and may raise. `written_digest` digests what is
    passed to `write`, where that is to be known elsewhere, too.
    Bytes that were passed to `write` are to be thrown away when the verdict has violations.

    `was_admitted` is for a checkpoint that is read again: rules that came since are not held against it. Its
    digest tells whether it is the one that was admitted then.
    `plans` has what earlier admissions found out from headers and configs alone, and takes what this one does.
    """
    config = checkpoint.config(limits)
    settings, violations = config.settings, list(config.violations)
    companions = _companions_of(checkpoint, violations)
    with ExitStack() as stack:
        seen = PlanSearch(plans, config.digest, base, limits) if not violations else None
        opened = _open_weights(checkpoint, limits, violations, stack, seen)
        if opened is None:
            return _verdict(violations, limits)
        file, header = opened
        known = seen.known if seen is not None else None
        checked, plan = (known.plan, known.weights) if known is not None else (None, None)
        if checked is None and settings is not None:
            try:
                with bounded_matching(limits.max_match_s):
                    checked, problems = check_tensors(header, settings, base, limits)
                violations.extend(problems)
            except MatchBudgetError as exc:
                expected = "expressions that are matched in time"
                violations.append(Violation.of("UNSUPPORTED_PATTERN", CONFIG_FILE, "too many", expected, str(exc)))
            except PatternError as exc:
                expected = "a regular expression that can be matched in bounded time"
                violations.append(Violation.of("UNSUPPORTED_PATTERN", CONFIG_FILE, "an expression", expected, str(exc)))
            if checked is not None and was_admitted and checked.modules:
                violations.clear()
            elif checked is not None and not violations and seen is not None:
                plan = plan_weights(checked.modules)
                seen.keep(header, checked, plan)
        if checked is not None and not violations:
            violations.extend(check_copies(checked.copies, file))
            violations.extend(check_tie(checked.tie, file))
        if checked is not None and checked.resized:
            violations = list(judged_rows(violations, checked.resized, file))
        if checked is None or violations:
            violations.extend(_values_violations(file, header, limits))
            return _verdict(violations, limits)
        end_token_ids, warnings = judge_companions(companions, base)
        plan = plan or plan_weights(checked.modules)
        if reserve is not None:
            reserve(plan.size_bytes)
        digest = written_digest or OwnDigest()
        sinks: list[Sink] = [digest.digest_also]
        if write is not None:
            sinks.append(write)
        written = write_weights(plan, file, sinks)
        violations.extend(written.violations)
    manifest = Manifest(
        base_model_digest=base.digest,
        weights_digest=digest.digest(),
        weights_size_bytes=plan.size_bytes,
        dtype=plan.dtype,
        modules=tuple(AdapterModule(m.path, m.rank, m.scaling, m.bias is not None) for m in plan.modules),
        end_token_ids=end_token_ids,
    )
    if violations:
        return _verdict(violations, limits)
    return Verdict((), manifest, (*config.warnings, *warnings, *(() if written.has_effect else (NO_EFFECT,))))


def base_model_name_of(checkpoint: Checkpoint, limits: AdmissionLimits) -> str:
    """The base model that the config names, or an empty text where it names none.

    Raises InvalidAdapterError where the config cannot be used, with everything that can be told without a base.
    """
    config = checkpoint.config(limits)
    if config.settings is not None:
        return config.settings.base_model_name
    violations = list(config.violations)
    with ExitStack() as stack:
        opened = _open_weights(checkpoint, limits, violations, stack)
        if opened is not None:
            violations.extend(_values_violations(*opened, limits))
    found = _verdict(violations, limits).violations
    raise error_class_of(found)(found)


def header_of(checkpoint: Checkpoint, limits: AdmissionLimits) -> Header | None:
    """The header of a checkpoint's weights; None where it cannot be read."""
    with ExitStack() as stack:
        opened = _open_weights(checkpoint, limits, [], stack)
        return opened[1] if opened is not None else None


def error_class_of(violations: tuple[Violation, ...]) -> type[InvalidAdapterError]:
    """The kind of error that tells most about a set of violations."""
    codes = {violation.code for violation in violations}
    if "BASE_MODEL_MISMATCH" in codes:
        return BaseModelMismatchError
    if all(code.startswith("UNSUPPORTED_") for code in codes):
        return UnsupportedAdapterError
    return RankTooLargeError if codes == {"RANK_TOO_LARGE"} else InvalidAdapterError


def _read_config(path: Path | None, max_bytes: int) -> ReadConfig:
    if path is None:
        problem = "the checkpoint has no config"
        return ReadConfig(None, (Violation.of("MISSING_FILE", CONFIG_FILE, "no such file", CONFIG_FILE, problem),))
    found, expected = f"{path.stat().st_size} bytes", f"at most {max_bytes} bytes"
    if path.stat().st_size > max_bytes:
        return ReadConfig(None, (Violation.of("FILE_TOO_LARGE", CONFIG_FILE, found, expected, "it is too large"),))
    return parse_config(path.read_bytes())


def _open_weights(
    checkpoint: Checkpoint,
    limits: AdmissionLimits,
    violations: list[Violation],
    stack: ExitStack,
    seen: PlanSearch | None = None,
) -> tuple[BinaryIO, Header] | None:
    name = checkpoint.weights_name
    names = (name,) if name is not None else shard_names(checkpoint.files)
    if not names:
        pickles = [pickle for pickle in PICKLE_FILES if pickle in checkpoint.files]
        problem = "no weights"
        if pickles:
            command = conversion_command(pickles[0], WEIGHTS_FILES[0])
            problem = f"pickles run code when they are read, so none is; convert it where you trust it: {command}"
        code = "UNSUPPORTED_PICKLE" if pickles else "MISSING_FILE"
        found = ", ".join(pickles) or "no such file"
        violations.append(Violation.of(code, WEIGHTS_FILES[0], found, WEIGHTS_FILES[0], problem))
        return None
    held = checkpoint.held if checkpoint.held is not None and name == checkpoint.held.name else None
    paths = [checkpoint.files[name] for name in names] if held is None else []
    size_bytes = sum(path.stat().st_size for path in paths) if held is None else len(held.data)
    if size_bytes > limits.max_weights_bytes:
        expected = f"at most {limits.max_weights_bytes} bytes"
        violations.append(Violation.of("FILE_TOO_LARGE", names[0], f"{size_bytes} bytes", expected, "it is too large"))
        return None
    try:
        if name is None:
            if missing := check_shards(names):
                violations.extend(missing)
                return None
            return open_shards(paths, limits.header, stack)
        opened: Any = paths[0].open("rb", buffering=0) if held is None else held.open()
        file: BinaryIO = stack.enter_context(opened)
        known = seen.header(file, size_bytes) if seen is not None else None
        return file, known or read_header(file, size_bytes, name, limits.header)
    except InvalidAdapterError as exc:
        violations.extend(exc.violations)
        return None


def _companions_of(checkpoint: Checkpoint, violations: list[Violation]) -> Companions:
    path = checkpoint.files.get(SUMMARY_FILE)
    if checkpoint.companions is not None or path is None:
        return checkpoint.companions or Companions()
    try:
        with path.open("rb") as file:
            return companions_from_json(file.read(MAX_SUMMARY_BYTES + 1))
    except StrictJsonError as exc:
        expected = "a summary as hotslot's client writes it"
        violations.append(Violation.of("BAD_COMPANIONS", SUMMARY_FILE, str(exc), expected, "it cannot be read"))
        return Companions()


def _values_violations(file: BinaryIO, header: Header, limits: AdmissionLimits) -> Iterator[Violation]:
    """Violations in the values of a checkpoint that is refused anyway."""
    return check_finite((entry for entry in header.tensors if entry.size_bytes <= limits.max_tensor_bytes), file)


def _verdict(violations: list[Violation], limits: AdmissionLimits) -> Verdict:
    num_more = len(violations) - limits.max_violations
    if num_more > 0:
        expected = f"at most {limits.max_violations} are listed"
        summary = Violation.of("TOO_MANY_VIOLATIONS", "the checkpoint", f"{num_more} more", expected, "the list is cut")
        violations = [*violations[: limits.max_violations], summary]
    return Verdict(tuple(violations), None)
