"""What happened to blobs since the process began, for the logs."""

import threading
from collections import Counter


class BlobStats:
    """Counters that any thread adds to."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, **counts: int) -> None:
        """Count: num_evicted, evicted_bytes, num_restored, restored_bytes, scrubbed_bytes, num_rotten, num_lost."""
        with self._lock:
            self._counts.update(counts)

    def all(self) -> dict[str, int]:
        """The counts so far."""
        with self._lock:
            return dict(self._counts)
