"""Locks of files: exclusive, shared, and gone with their holder."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hotslot.file_lock import lock, try_lock

HOLDER = """
import sys
from hotslot.file_lock import try_lock
with open(sys.argv[1], "rb") as file:
    print(try_lock(file.fileno(), is_shared=sys.argv[2] == "shared"), flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("held", "wanted", "is_taken"),
    [("alone", "alone", False), ("alone", "shared", False), ("shared", "alone", False), ("shared", "shared", True)],
)
def test_only_shared_locks_go_together_and_a_killed_holder_lets_go(
    tmp_path: Path, held: str, wanted: str, is_taken: bool
) -> None:
    path = tmp_path / "lock"
    path.touch()
    command = [sys.executable, "-c", HOLDER, str(path), held]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder, path.open("rb") as file:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        assert try_lock(file.fileno(), is_shared=wanted == "shared") is is_taken
        waiting = threading.Thread(target=lock, args=(file.fileno(),), daemon=True)
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        holder.kill()
        waiting.join(60)
        assert not waiting.is_alive()
