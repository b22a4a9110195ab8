"""Hold the protos against the released contract, `protos/released.binpb`, by buf's breaking rules.

A difference that is accepted stands in `ACCEPTED` with its reason; another one fails, and so does a row that nothing
matches any more. After a release: `buf build --exclude-source-info -o protos/released.binpb`, and the rows go.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RELEASED = ROOT / "protos" / "released.binpb"
BUF_FAILS = 100
"""Exit code of buf when it found differences."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A kind of differences that is accepted."""

    rule: str
    """Name of buf's rule."""
    message: str
    """Expression that the whole message of a difference matches."""
    reason: str


_NO_STUBS = "the wire and JSON do not know of it, and no stubs were published for this language that it could break"

ACCEPTED = (
    Accepted("FILE_SAME_GO_PACKAGE", r'File option "go_package" changed from "" to ".*"\.', _NO_STUBS),
    Accepted("FILE_SAME_JAVA_PACKAGE", r'File option "java_package" changed from "" to ".*"\.', _NO_STUBS),
    Accepted(
        "FILE_SAME_JAVA_MULTIPLE_FILES",
        r'File option "java_multiple_files" changed from "false" to "true"\.',
        _NO_STUBS,
    ),
)


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference that buf found."""

    path: str
    line: int
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.message}"


def differences(protos: Path = ROOT) -> list[Difference]:
    """Differences of a folder with a `buf.yaml` from the released contract. Raises OSError where buf does not run."""
    command = [str(Path(sys.executable).with_name("buf")), "breaking", "--against", str(RELEASED)]
    done = subprocess.run(
        [*command, "--error-format=json"], cwd=protos, capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode not in (0, BUF_FAILS):
        raise OSError(f"buf breaking failed: {done.stderr}")
    found = map(json.loads, done.stdout.splitlines())
    return [Difference(it.get("path", ""), it.get("start_line", 0), it["type"], it["message"]) for it in found]


def complaints(found: Sequence[Difference], accepted: Sequence[Accepted] = ACCEPTED) -> list[str]:
    """Differences that no row accepts, and rows that accept nothing."""
    unlisted = [str(it) for it in found if not any(_matches(row, it) for row in accepted)]
    idle = [row for row in accepted if not any(_matches(row, it) for it in found)]
    return unlisted + [f"nothing is accepted by {row.rule}: {row.message}; remove the row" for row in idle]


def _matches(row: Accepted, found: Difference) -> bool:
    return row.rule == found.rule and re.fullmatch(row.message, found.message) is not None


def main() -> int:
    """Run the command; 1 when there is something to complain about."""
    problems = complaints(differences())
    for line in problems:
        print(line, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
