"""Texts that end a continuation: found in the tokens of a round, at the token that completes them.

The text that is written ends before the stop text; the tokens end with the one that completes it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from torch import Tensor

from .batch import Batch

LEAD = 8  # tokens decoded before the earliest that a stop text can begin with: a text's first tokens may decode differently


def cut_text(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of its stop texts."""
    places = [place for place in map(text.find, stops) if place >= 0]
    return text[: min(places)] if places else text


class StopTexts:
    """Ends rows whose new tokens complete one of their prompt's stop texts.

    Rows without any cost nothing; a row with some costs one call of the tokenizer a round, over its last tokens.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def cut(self, batch: Batch, emitted_B: Tensor, ends_B: Tensor) -> tuple[Tensor, Tensor]:
        """`emitted_B` and `ends_B` where stop texts are heeded too; the new tokens lie after each row's known ones."""
        rows = [row for row, place in enumerate(batch.places) if batch.prompts[place].stop]
        if not rows:
            return emitted_B, ends_B
        emitted_B, ends_B = emitted_B.clone(), ends_B.clone()
        counts, lengths = emitted_B.tolist(), batch.lengths_B.tolist()
        tails = {row: self._tail(batch, row, lengths[row], counts[row]) for row in rows if counts[row]}
        texts = self.tokenizer.decode_batch(list(tails.values()))
        for (row, tail), text in zip(tails.items(), texts, strict=True):
            stops = batch.prompts[batch.places[row]].stop
            if any(stop in text for stop in stops):
                completed = range(len(tail) - counts[row] + 1, len(tail) + 1)
                ending = next((n for n in completed if _any_in(stops, self.tokenizer.decode(tail[:n]))), len(tail))
                emitted_B[row] = counts[row] - (len(tail) - ending)
                ends_B[row] = True
        return emitted_B, ends_B

    def _tail(self, batch: Batch, row: int, length: int, new: int) -> list[int]:
        """The last of a row's emitted tokens: enough to hold any of its stop texts, of which a token is a byte at least."""
        prompt = batch.prompts[batch.places[row]]
        longest = max(len(stop.encode()) for stop in prompt.stop)
        first = max(len(prompt.tokens), length - longest - LEAD)
        tail: list[int] = batch.tokens_BS[row, first : length + new].tolist()
        return tail


def _any_in(stops: Sequence[str], text: str) -> bool:
    return any(stop in text for stop in stops)
