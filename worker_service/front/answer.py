"""One choice of an answer: its tokens come in, text goes out, until it ends. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from hotslot.contract.generation import Chunk, FinishReason, TokenAlternative, TokenLogprob
from worker_service.engine.messages import SampledToken, SequenceFinished, TokenReady
from worker_service.front.detokenizer import Decoding, Detokenizer, TokenOf
from worker_service.front.stop_strings import StopStrings


@dataclass(frozen=True, slots=True)
class Ending:
    """Reason for the end of a choice."""

    reason: FinishReason
    stop_string: str | None = None
    stop_token_id: int | None = None


class Answer:
    """Collects what a reader has not got yet.

    A stop token is reported with the tokens and has no text. The event after a token tells whether it was one, so a
    token that might be is kept until then.
    """

    def __init__(
        self,
        choice: int,
        decoding: Decoding,
        prompt_token_ids: Sequence[int],
        stop_strings: Sequence[str],
        stop_token_ids: frozenset[int],
        min_tokens: int,
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self.choice = choice
        self.num_tokens = 0
        self.ending: Ending | None = None
        self.first: TokenReady | None = None
        self.last_s = 0.0
        self._decoding = decoding
        self._skips = skip_special_tokens
        self._detokenizer = Detokenizer(decoding.plain if skip_special_tokens else decoding.complete, prompt_token_ids)
        self._complete: Detokenizer | None = None
        """Detokenizer of the text with special tokens, from the first one on, if stop strings are looked for in it."""
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
        """Chunk of all that has come together since the last time, if anything."""
        if not self._tokens and not any(self._text):
            return None
        token_ids = tuple([token.token_id for token in self._tokens])
        chunk = Chunk(self.choice, "".join(self._text), token_ids, logprobs_of(self._tokens, self._decoding.token))
        self._text, self._tokens = [], []
        return chunk

    def _settle(self, token: SampledToken) -> bool:
        self.num_tokens += 1
        self._tokens.append(token)
        piece, shown = self._piece(token.token_id)
        if self.num_tokens < self._min_tokens:
            self._text.append(shown)
            return False
        text, stop_string = self._stop.feed(piece, shown)
        self._text.append(text)
        if stop_string is None:
            return False
        self._kept = None
        self.ending = Ending(FinishReason.STOP, stop_string=stop_string)
        return True

    def _piece(self, token_id: int) -> tuple[str, str]:
        """The text that a token completes: all of it, and what of it is shown."""
        is_first = self._complete is None and token_id in self._decoding.special_token_ids
        if is_first and self._skips and self._stop:
            self._complete = self._detokenizer.twin(self._decoding.complete)
        shown = self._detokenizer.feed(token_id)
        return (shown if self._complete is None else self._complete.feed(token_id)), shown


def logprobs_of(tokens: Sequence[SampledToken], token_of: TokenOf) -> tuple[TokenLogprob, ...]:
    """Log-probabilities of the tokens that have one, with the tokens' texts."""
    return tuple([_logprob_of(token, token.logprob, token_of) for token in tokens if token.logprob is not None])


def _logprob_of(token: SampledToken, logprob: float, token_of: TokenOf) -> TokenLogprob:
    own = token_of(token.token_id)
    alternatives = [(*alternative[:2], *token_of(alternative.token_id)[1:]) for alternative in token.alternatives]
    return TokenLogprob(
        token.token_id, logprob, tuple(map(TokenAlternative._make, alternatives)), own.text, own.text_bytes
    )
