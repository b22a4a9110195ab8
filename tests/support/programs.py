"""Programs that tests need beside the environment's: skipped without, but not on the machine that gates changes."""

import os
from functools import cache

import pytest

from tools.debian_programs import DebianProgram, ProgramMissingError, debian_program


@cache
def needed_program(package: str, path: str) -> DebianProgram:
    """The program of one of Debian's packages; where CI is set, a test that cannot have it fails."""
    try:
        return debian_program(package, path)
    except ProgramMissingError as exc:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(exc))
