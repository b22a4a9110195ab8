"""Finds stop strings in text that comes in pieces, and holds back what may turn out to be the beginning of one."""

from collections.abc import Sequence


class StopStrings:
    """The stop strings of one answer.

    The answer ends at the first character that completes a stop string; if it completes several, the longest counts.
    That does not depend on how the text is cut into pieces.
    """

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self._stop_strings = sorted(stop_strings, key=len, reverse=True)
        self._held = ""

    def feed(self, piece: str) -> tuple[str, str | None]:
        """The text that may go out, and the stop string that has been completed, if any.

        With a stop string the text ends before it, and the answer is over.
        """
        if not self._stop_strings:
            return piece, None
        text = self._held + piece
        found = self._first(text)
        if found is not None:
            end, stop = found
            self._held = ""
            return text[: end - len(stop)], stop
        keep = self._num_held(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """What was held back, when the answer ends in another way."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str) -> tuple[int, str] | None:
        """The earliest end of a stop string in the text."""
        best: tuple[int, str] | None = None
        for stop in self._stop_strings:
            begin = text.find(stop)
            if begin >= 0 and (best is None or begin + len(stop) < best[0]):
                best = (begin + len(stop), stop)
        return best

    def _num_held(self, text: str) -> int:
        """Length of the longest end of the text that is a proper beginning of a stop string."""
        longest = len(self._stop_strings[0]) - 1
        for size in range(min(longest, len(text)), 0, -1):
            tail = text[len(text) - size :]
            if any(len(stop) > size and stop.startswith(tail) for stop in self._stop_strings):
                return size
        return 0
