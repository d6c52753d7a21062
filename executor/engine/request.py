"""What is to be continued: one request, as the caller hands it over."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """One prompt to continue.

    Attributes:
        id: Id from the prompts file, or the line number. It seeds the request's random draws.
        tokens: Token ids of the prompt, at least one.
        max_new_tokens: Limit for this request; None for the limit of the run. [tokens]
        stop_strings: Strings that end the completion, in addition to the stop tokens.
        kv_budget: KV entries that a sparse draft reads for this request; None for the strategy's budget. [tokens]
    """

    id: str
    tokens: list[int]
    max_new_tokens: int | None = None
    stop_strings: tuple[str, ...] = ()
    kv_budget: int | None = None
