"""Record of a start that ended well: its programs, and the digests of what it answered, for the next start.

A file in the compiler's cache, so that it ships with the code that it calls. It is for one key of compiled code; one
that is damaged, or of another key, is not read.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from transformers import PreTrainedModel

from hotslot.content_files import StagedFile
from hotslot.errors import CompilerMissingError
from worker_service.engine.limits import EngineLimits
from worker_service.model import self_test
from worker_service.model.filled_slot import filled_slot
from worker_service.model.kept_programs import Libraries, ProgramsNotKeptError
from worker_service.model.runner import TorchRunner
from worker_service.model.shared_code import INDUCTOR_DIR, CodeKey, SharedCode
from worker_service.model.step_programs import StepPrograms, digest_of_logits
from worker_service.model.whole_forwards import ForwardKind

log = structlog.get_logger(__name__)

FORMAT = 2
FOLDER = "hotslot-programs"
SELF_TEST = "self-test"
"""Name of the self-test's answers; the others are named by their kind of step."""
Answers = Mapping[str, str]
"""Digests of logits by the step that they are of."""


@dataclass(frozen=True, slots=True)
class StartRecord:
    """Programs and answers of a start, as they were read."""

    folder: Path
    programs: Mapping[str, Any]
    libraries: Mapping[str, str]
    answers: Answers
    forwards: tuple[ForwardKind, ...]
    """Kinds of steps whose forwards were noted."""

    def has_libraries(self) -> bool:
        """Tell whether all its libraries are there, as they were."""
        libraries = Libraries(self.folder, dict(self.libraries))
        return all(libraries.is_there(name) for name in self.libraries)

    def bind(self, programs: StepPrograms | None) -> None:
        """Have the programs run in this process; raises ProgramsNotKeptError."""
        if programs is None:
            raise ProgramsNotKeptError("this process has no kernels to run them")
        programs.bind(self.programs, Libraries(self.folder, dict(self.libraries)))

    def check(self, answers: Answers) -> None:
        """Compare what this process answers; raises ProgramsNotKeptError where one bit differs."""
        different = sorted(name for name in {*answers, *self.answers} if answers.get(name) != self.answers.get(name))
        if different:
            raise ProgramsNotKeptError(f"answers differ from those of the start that kept them: {', '.join(different)}")


@dataclass(frozen=True, slots=True)
class KeptStart:
    """Place of the record for one key."""

    cache_dir: Path
    key: CodeKey

    @property
    def path(self) -> Path:
        """File of the record."""
        return self._folder / FOLDER / f"{self.key.digest.removeprefix('sha256:')[:16]}.json"

    @property
    def _folder(self) -> Path:
        # In the form in which the compiler has it: libraries are told to be in the folder by their paths.
        return Path(os.path.abspath(self.cache_dir / INDUCTOR_DIR))  # noqa: PTH100  (keeps links, drops "..")

    def read(self) -> StartRecord | None:
        """Record of an earlier start; None where there is none, or none that is whole and of this key."""
        if not self.key.is_open:
            return self._read(self.path)
        found = (self._read(path) for path in sorted(self.path.parent.glob("*.json"), key=_written_ns, reverse=True))
        # Libraries of two compilers have one name, and those that were here first stay.
        return next((record for record in found if record is not None and record.has_libraries()), None)

    def _read(self, path: Path) -> StartRecord | None:
        try:
            digest, _, content = path.read_bytes().partition(b"\n")
        except OSError:
            return None
        try:
            if hashlib.sha256(content).hexdigest() != digest.decode():
                raise ValueError("its bytes are not what its digest says")
            found = json.loads(content)
            if found["format"] != FORMAT:
                raise ValueError(f"it is not of format {FORMAT}")
            if different := self.key.differences(found["facts"]):
                raise ValueError(f"it is of another key: {'; '.join(different)}")
            forwards = tuple(ForwardKind(*each) for each in found["forwards"])
            return StartRecord(self._folder, found["programs"], found["libraries"], found["answers"], forwards)
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            log.warning("kept_start_not_used", file=path.name, why=str(exc))
            return None

    def write(self, programs: StepPrograms, answers: Answers, forwards: Iterable[ForwardKind]) -> None:
        """Keep a start that passed its self-test; one that cannot be kept is logged, and the next start compiles."""
        try:
            libraries = Libraries(self._folder)
            kept = programs.kept(libraries)
            record = {
                "format": FORMAT,
                "facts": dict(self.key.facts),
                "programs": kept,
                "libraries": libraries.digests,
                "answers": dict(answers),
                "forwards": sorted(forwards),
            }
            content = json.dumps(record).encode()
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Of a name that is not packed, by a worker that shares the code of this directory meanwhile.
            staged = StagedFile(self.path.with_name(f".{secrets.token_hex(8)}.tmp"), digests=False)
            try:
                staged.write(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
                staged.publish(self.path, is_durable=False)
            finally:
                staged.discard()
        except (ProgramsNotKeptError, OSError) as exc:
            log.warning("start_not_kept", why=str(exc))


def _written_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def answers_now(model: PreTrainedModel, runner: TorchRunner, limits: EngineLimits) -> dict[str, str]:
    """Digests of this process's logits, in the steps whose digests a start keeps."""
    assert runner.programs is not None
    with filled_slot(runner.slot_linears.values()):
        answers = runner.programs.answers(runner.logits, runner.token_buckets, limits, runner.num_embeddings)
    return answers | {SELF_TEST: digest_of_logits(self_test.answers(model, runner, limits))}


def record_of_start(
    kept_start: KeptStart | None, shared_code: SharedCode | None, key: CodeKey, *, has_to_fit: bool, refused: str
) -> StartRecord | None:
    """Record of an earlier start, if there is one that was not `refused`, which says why it did not fit before.

    Raises CompilerMissingError where there is none and it `has_to_fit`, since nothing can be compiled here.
    """
    kept = kept_start.read() if kept_start is not None and not refused else None
    if kept is not None or not has_to_fit:
        return kept
    if kept_start is not None and shared_code is not None and not refused:
        # What was fetched before may be damaged since, and is not made again here.
        shared_code.bring(key, anew=True)
        kept = kept_start.read()
    if kept is None:
        raise CompilerMissingError(refused or "no compiled code that fits was found")
    return kept
