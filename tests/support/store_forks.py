"""Becomes a store as often as it is told to: forked from a process that has imported everything already.

Reads one line of JSON for each store (its settings as environment variables), answers with the process id, and takes
all of them along when its input ends.
"""

import json
import os
import signal
import sys

import store_service.sources.hub.commit  # noqa: F401 (what a store imports later is here already)
from store_service.__main__ import main


def become_a_store(environment: dict[str, str]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.update(environment)
    sys.argv[1:] = []
    log = os.open(environment["LOG_PATH"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os._exit(main())


def serve() -> None:
    # Nobody waits for what was killed: the kernel clears it away.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        environment = json.loads(line)
        pid = os.fork()
        if not pid:
            become_a_store(environment)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    serve()
