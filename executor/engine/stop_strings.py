"""Stop strings: find the token of a round that completes one.

The tokens of a completion end with the token that completes the stop string; its text ends before the stop string.

Shapes: B batch, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from torch import Tensor

from .request import Request

LEAD_TOKENS = 8  # decoded before the earliest possible start of a stop string: the first tokens of a text may decode differently


def truncate_at_stop(text: str, stop_strings: Sequence[str]) -> str:
    """Truncate a text at the first stop string."""
    starts = [start for start in map(text.find, stop_strings) if start >= 0]
    return text[: min(starts)] if starts else text


class StopStrings:
    """Ends rows whose new tokens complete a stop string of their request.

    Rows without stop strings cost nothing. The others share one tokenizer call per round, over their last tokens only.

    Args:
        tokenizer: The target's tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def truncate(
        self, requests: Sequence[Request], tokens_BS: Tensor, lengths_B: Tensor, emitted_B: Tensor, ends_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cut the new tokens of a round at the first stop string of each row.

        Args:
            requests: The request of each row.
            tokens_BS: Tokens of each row; the new ones follow the committed ones.
            lengths_B: Committed tokens of each row. [tokens]
            emitted_B: New tokens of each row. [tokens]
            ends_B: Whether each row ends in this round.

        Returns:
            emitted_B and ends_B with stop strings taken into account.
        """
        rows = [row for row, request in enumerate(requests) if request.stop_strings]
        if not rows:
            return emitted_B, ends_B
        emitted_B, ends_B = emitted_B.clone(), ends_B.clone()
        counts, lengths = emitted_B.tolist(), lengths_B.tolist()
        tails = {row: _tail(requests[row], tokens_BS[row], lengths[row], counts[row]) for row in rows if counts[row]}
        texts = self.tokenizer.decode_batch(list(tails.values()))
        for (row, tail), text in zip(tails.items(), texts, strict=True):
            stop_strings = requests[row].stop_strings
            if _contains_any(text, stop_strings):
                ends = range(len(tail) - counts[row] + 1, len(tail) + 1)
                end = next((end for end in ends if _contains_any(self.tokenizer.decode(tail[:end]), stop_strings)), len(tail))
                emitted_B[row] = counts[row] - (len(tail) - end)
                ends_B[row] = True
        return emitted_B, ends_B


def _tail(request: Request, tokens_S: Tensor, length: int, new: int) -> list[int]:
    """The last completion tokens of a row: enough to hold any of its stop strings, as a token holds at least one byte."""
    longest = max(len(stop.encode()) for stop in request.stop_strings)
    first = max(len(request.tokens), length - longest - LEAD_TOKENS)
    tail: list[int] = tokens_S[first : length + new].tolist()
    return tail


def _contains_any(text: str, stop_strings: Sequence[str]) -> bool:
    return any(stop in text for stop in stop_strings)
