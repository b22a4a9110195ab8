"""Look for known weaknesses in the locked dependencies: `python -m tools.supply.audit`.

pip-audit asks an advisory database on the Internet. Where that cannot be reached nothing was audited, and this says so
and exits with 3; with --unless-offline it says so too, and exits with 0.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.supply.closure import ROOT

LOCKS = ROOT / "requirements"
NOT_AUDITED = 3
TIMEOUT_S = 300
UNREACHABLE = (
    "ConnectionError",
    "Connection error",
    "could not connect",
    "Failed to establish",
    "Failed to resolve",
    "Max retries exceeded",
    "NameResolutionError",
    "ServiceError",
    "ConnectTimeout",
    "ReadTimeout",
    "timed out",
    "Tunnel connection failed",
    "ProxyError",
)


def verdict_of(returned: int, told: str, unless_offline: bool) -> tuple[int, str]:
    """Exit status and line for one lock: weaknesses are 1, and no answer from the database is no verdict."""
    if returned == 0:
        return 0, "no known weakness"
    if any(sign in told for sign in UNREACHABLE):
        line = "NOT AUDITED: the advisory database cannot be reached; run `make audit` where it can"
        return 0 if unless_offline else NOT_AUDITED, line
    return 1, "has known weaknesses, or could not be read"


def audit(lock: Path) -> tuple[int, str]:
    """Ask about one lock; its exit status and output."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--require-hashes", "--disable-pip"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return 1, "timed out"
    return done.returncode, done.stdout + done.stderr


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit each lock; the largest exit status of all."""
    parser = argparse.ArgumentParser(prog="python -m tools.supply.audit", description=__doc__)
    parser.add_argument("--unless-offline", action="store_true", help="exit with 0 where it cannot be reached")
    chosen = parser.parse_args(arguments)
    worst = 0
    for lock in sorted(LOCKS.glob("*.lock")):
        returned, told = audit(lock)
        status, line = verdict_of(returned, told, chosen.unless_offline)
        print(f"audit: {lock.name}: {line}", file=sys.stderr if status else sys.stdout)
        if status == 1:
            print(told, file=sys.stderr)
        worst = max(worst, status)
    return worst


if __name__ == "__main__":
    sys.exit(main())
