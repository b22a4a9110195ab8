"""Finds stop strings in text that comes in pieces, and holds back what may turn out to be the beginning of one.

Special tokens count as the text that they are written as, also where the reader does not get it: a piece may be looked
at and shown differently.
"""

from collections.abc import Sequence


class StopStrings:
    """The stop strings of one answer.

    The answer ends at the first character that completes a stop string; if it completes several, the longest counts.
    That does not depend on how the text is cut into pieces.
    """

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self._stop_strings = sorted(stop_strings, key=len, reverse=True)
        self._held: list[tuple[str, str]] = []
        """Pieces that may belong to a stop string, as they are and as they are shown."""

    def __bool__(self) -> bool:
        """Tell that there are any."""
        return bool(self._stop_strings)

    def feed(self, piece: str, shown: str | None = None) -> tuple[str, str | None]:
        """The text that may go out, and the stop string that has been completed, if any.

        With a stop string the text ends before it, and the answer is over. `shown` goes out for the piece, where it is
        not the piece itself.
        """
        shown = piece if shown is None else shown
        if not self._stop_strings:
            return shown, None
        self._held.append((piece, shown))
        text = "".join(piece for piece, _ in self._held)
        found = self._first(text)
        if found is None:
            return self._release(len(text) - self._num_held(text)), None
        end, stop = found
        out = self._release(end - len(stop))
        self._held = []
        return out, stop

    def flush(self) -> str:
        """Text that was held back, when the answer ends in another way."""
        held, self._held = self._held, []
        return "".join(shown for _, shown in held)

    def _release(self, num_chars: int) -> str:
        """Text that is shown for the first characters that are held, which are held no longer."""
        out: list[str] = []
        while self._held:
            piece, shown = self._held[0]
            left = len(piece) - num_chars
            if left > 0:
                # The two differ at their beginning, if at all: a space that is not shown after a special token.
                cut = max(0, len(shown) - left)
                out.append(shown[:cut])
                self._held[0] = piece[num_chars:], shown[cut:]
                break
            num_chars -= len(piece)
            out.append(shown)
            del self._held[0]
        return "".join(out)

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
