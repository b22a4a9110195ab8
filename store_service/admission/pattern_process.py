"""Program of the helper process: matches what comes on its input, a line of JSON at a time. Imports nothing of ours.

Python's engine backtracks, so a match may take for ever. The kernel ends this process once one match has used its share
of processor time, and the process that waits for the answer sees the pipe close.
"""

import json
import re
import resource
import signal
import sys
import time

MAX_MEMORY_BYTES = 512 * 1024 * 1024


def main() -> None:
    """Answer `[text, path, matches_whole, cpu_s]` with `[is_match, cpu_s]`, or with `[error]`, until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin.buffer:
        text, path, matches_whole, cpu_s = json.loads(line)
        before_s = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        try:
            # As PEFT 0.21 matches targets, and as it matches keys of patterns.
            found = re.fullmatch(text, path) if matches_whole else re.match(rf"(.*\.)?({text})$", path)
            answer: list[object] = [found is not None, time.process_time() - before_s]
        except (re.error, OverflowError, RecursionError, MemoryError) as exc:
            answer = [str(exc)[:200] or type(exc).__name__]
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
