"""One choice of an answer: its tokens come in, text goes out, until it ends. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from worker_service.engine.messages import FinishReason, SampledToken, SequenceFinished, TokenReady
from worker_service.front.detokenizer import Decode, Detokenizer
from worker_service.front.requests import Chunk
from worker_service.front.stop_strings import StopStrings


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a choice ended."""

    reason: FinishReason
    stop_string: str | None = None
    stop_token_id: int | None = None


class Answer:
    """Collects what a reader has not got yet.

    A stop token is reported with the tokens and has no text. Whether a token was one is known with the event after
    it, so a token that might be is kept until then.
    """

    def __init__(
        self,
        choice: int,
        decode: Decode,
        prompt_token_ids: Sequence[int],
        stop_strings: Sequence[str],
        stop_token_ids: frozenset[int],
        min_tokens: int,
    ) -> None:
        self.choice = choice
        self.num_tokens = 0
        self.ending: Ending | None = None
        self.first: TokenReady | None = None
        self.last_s = 0.0
        self._detokenizer = Detokenizer(decode, prompt_token_ids)
        self._stop = StopStrings(stop_strings)
        self._stop_token_ids = stop_token_ids
        self._min_tokens = min_tokens
        self._kept: SampledToken | None = None
        self._text: list[str] = []
        self._tokens: list[SampledToken] = []

    def add(self, event: TokenReady) -> bool:
        """Take a token; True when it completed a stop string, so that the sequence need not go on."""
        if self.first is None:
            self.first = event
        self.last_s = event.time_s
        if self._kept is not None and self._settle(self._kept):
            return True
        self._kept = None
        if event.token.token_id in self._stop_token_ids:
            self._kept = event.token
            return False
        return self._settle(event.token)

    def finish(self, event: SequenceFinished) -> None:
        """The sequence ended by itself."""
        self.last_s = event.time_s
        kept, self._kept = self._kept, None
        if kept is not None:
            if event.reason is FinishReason.STOP:
                self.num_tokens += 1
                self._tokens.append(kept)
            elif self._settle(kept):
                return
        self._text.append(self._stop.flush())
        self.ending = Ending(event.reason, stop_token_id=event.stop_token_id)

    def take(self) -> Chunk | None:
        """What has come together since the last time, if anything."""
        if not self._tokens and not any(self._text):
            return None
        chunk = Chunk(self.choice, "".join(self._text), tuple(self._tokens))
        self._text, self._tokens = [], []
        return chunk

    def _settle(self, token: SampledToken) -> bool:
        self.num_tokens += 1
        self._tokens.append(token)
        piece = self._detokenizer.feed(token.token_id)
        if self.num_tokens < self._min_tokens:
            self._text.append(piece)
            return False
        text, stop_string = self._stop.feed(piece)
        self._text.append(text)
        if stop_string is None:
            return False
        self._kept = None
        self.ending = Ending(FinishReason.STOP, stop_string=stop_string)
        return True
