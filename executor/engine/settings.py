"""Settings that all requests of a run share."""

from __future__ import annotations

from dataclasses import dataclass

from .sampling import GREEDY, Sampling
from .stop_strings import StopStrings


@dataclass(frozen=True)
class GenerationSettings:
    """How completions are sampled and when they end.

    Attributes:
        max_new_tokens: Limit for requests that set none themselves. [tokens]
        stop_tokens: Ids that end a completion.
        stop_strings: Checks the stop strings of the requests; None to ignore them.
        sampling: How a token is chosen from the logits.
    """

    max_new_tokens: int
    stop_tokens: tuple[int, ...] = ()
    stop_strings: StopStrings | None = None
    sampling: Sampling = GREEDY
