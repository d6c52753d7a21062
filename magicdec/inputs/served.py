"""How the requests of a plan are served: what is cached, how long they wait, what they may take and cost."""

from __future__ import annotations

from dataclasses import dataclass

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.base.units import format_seconds
from magicdec.costmodel.plans.trace import RequestTrace


@dataclass(frozen=True)
class Serving:
    """How requests are served.

    Attributes:
        cached_share: Share of each prompt whose KV cache is there already. [0-1]
        queue_s: Time that a request waits before its prefill. [s]
        max_ttft_s: Limit on the time to first token. [s]
        gpu_price: Price of a GPU. [dollars per hour]
        output_len_assumed: The output length was not given.
    """

    cached_share: float = 0.0
    queue_s: float = 0.0
    max_ttft_s: float | None = None
    gpu_price: float | None = None
    output_len_assumed: bool = False

    def check(self, ttft_s: float) -> None:
        """Refuse a limit that no strategy can hold: the time to first token does not depend on the strategy.

        Raises:
            InputError: The prompt takes longer.
        """
        if self.max_ttft_s is not None and ttft_s > self.max_ttft_s:
            ratio = f"{ttft_s / self.max_ttft_s:.2f} times the limit"
            expected = f"at least {format_seconds(ttft_s)}, the TTFT of these prompts here ({ratio})"
            raise bad("max_ttft_s", "", expected, format_seconds(self.max_ttft_s))

    def notes(self, output_len: int, trace: RequestTrace | None) -> list[str]:
        """What was assumed of the requests."""
        if not self.output_len_assumed or trace is not None:
            return []
        return [f"{output_len} output tokens a request are assumed, because no output length was given; end to end depends on it"]
