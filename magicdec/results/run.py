"""What a run of a plan did, beside what was predicted."""

from __future__ import annotations

import math
from dataclasses import dataclass

from magicdec.costmodel.base.records import to_document
from magicdec.costmodel.base.units import format_bytes, format_seconds
from magicdec.costmodel.plans.measurement import Measurement
from magicdec.costmodel.plans.plan import Plan

from ..files.completions import Completion
from ..render.tables import text_table
from .base import Result, Row


@dataclass(frozen=True)
class Difference:
    """Where the output of a prompt departs from autoregressive decoding.

    Attributes:
        prompt: Its id.
        position: First new token that differs. [tokens]
        gap_nats: Log-probability of the argmax minus that of the token; infinite where one output is longer. [nats]
        near_tie: The gap is so small that rounding may swap the two tokens.
    """

    prompt: str
    position: int
    gap_nats: float
    near_tie: bool

    def __str__(self) -> str:
        gap = "one output ends there" if math.isinf(self.gap_nats) else f"{self.gap_nats:.2g} nats below the argmax"
        return f"prompt {self.prompt} differs from autoregressive decoding at new token {self.position} ({gap})"


@dataclass(frozen=True, repr=False, eq=False)
class RunResult(Result):
    """A run of a plan.

    Attributes:
        plan: What was run.
        measurement: The record of it; None if every completion existed already.
        differences: Where outputs differ from those of autoregressive decoding; empty without a comparison.
        completions: What was generated; empty if it went to a file.
        prompts_skipped: Prompts whose completions were in the output file already.
        output: The output file, if there is one.
        notes: What else a reader must know.
        is_rank0: This process prints and writes; false in the others that share the models.
    """

    plan: Plan
    measurement: Measurement | None
    differences: tuple[Difference, ...] = ()
    completions: tuple[Completion, ...] = ()
    prompts_skipped: int = 0
    output: str | None = None
    notes: tuple[str, ...] = ()
    is_rank0: bool = True

    @property
    def lossless(self) -> bool:
        """No output differs from autoregressive decoding by more than a near tie."""
        return all(difference.near_tie for difference in self.differences)

    @property
    def comparable(self) -> bool:
        """The plan predicts this very run: same workload, machine, strategy and models."""
        return self.measurement is not None and self._compared and self.measurement.follows(self.plan)

    @property
    def _compared(self) -> bool:
        return self.measurement is not None and self.measurement.measured_speedup is not None

    @property
    def headline(self) -> str:
        measured = self.measurement
        if measured is None:
            return f"all {self.prompts_skipped} completions are in {self.output} already"
        if measured.measured_speedup is not None and measured.strategy.gamma:
            return f"{measured.strategy}: {measured.measured_speedup:.2f}x as fast as autoregressive decoding"
        return f"{measured.strategy}: {measured.tokens} tokens at {measured.throughput_tokens_per_s:.0f} tokens/s"

    def rows(self) -> list[Row]:
        """Predicted beside measured, a row a quantity that both have. [s, tokens, ratio]"""
        return [
            {"quantity": name, "predicted": predicted, "measured": measured, "error": predicted / measured - 1}
            for name, (predicted, measured) in self._quantities().items()
        ]

    def _quantities(self) -> dict[str, tuple[float, float]]:
        measured, predicted = self.measurement, self.plan.prediction
        if measured is None:
            return {}
        throughput = self.plan.workload.batch_size / predicted.predicted_speculative_tpot_s
        drafting_s = predicted.predicted_gamma_draft_step_s
        draft_step_s = drafting_s / self.plan.strategy.gamma if self.plan.strategy.gamma else drafting_s
        pairs = {
            "target step": (predicted.predicted_target_step_s, measured.measured_target_step_s),
            "draft step": (draft_step_s, measured.measured_draft_step_s),
            "verify step": (predicted.predicted_verify_step_s, measured.measured_verify_step_s),
            "acceptance rate": (predicted.predicted_acceptance_rate, measured.acceptance_rate),
            "tokens per round": (predicted.predicted_mean_acceptance_length, measured.mean_acceptance_length),
            "TPOT, autoregressive": (predicted.predicted_target_step_s, measured.measured_autoregressive_tpot_s),
            "TPOT, speculative": (predicted.predicted_speculative_tpot_s, measured.measured_speculative_tpot_s),
            "tokens/s": (throughput, measured.throughput_tokens_per_s),
            "speedup": (predicted.predicted_speedup, measured.measured_speedup),
        }
        return {name: (a, b) for name, (a, b) in pairs.items() if a is not None and b}

    def to_dict(self) -> dict[str, object]:
        if self.measurement is None:
            strategy = to_document(self.plan.strategy)
            return {"strategy": strategy, "tokens": 0, "prompts_skipped": self.prompts_skipped, "differences": []}
        predicted = self.plan.prediction
        return {
            **{key: value for key, value in to_document(predicted).items() if key not in ("breakdown", "bound")},
            "predicted_throughput_tokens_per_s": self.plan.workload.batch_size / predicted.predicted_speculative_tpot_s,
            **self.measurement.model_dump(mode="json"),
            "comparable": self.comparable,
            "planned_for": self.plan.hardware.name,
            "differences": [
                {
                    "prompt": one.prompt,
                    "position": one.position,
                    "gap_nats": None if math.isinf(one.gap_nats) else one.gap_nats,
                    "near_tie": one.near_tie,
                    "words": str(one),
                }
                for one in self.differences
            ],
            "prompts_skipped": self.prompts_skipped,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        measured = self.measurement
        if measured is None:
            return self.headline
        notes = [f"note: {note}" for note in self.notes]
        if self._compared:
            return "\n".join([self._comparison_text(measured), *notes])
        rate = "" if measured.acceptance_rate is None else f", acceptance rate {measured.acceptance_rate:.2f}"
        skipped = f"; {self.prompts_skipped} completions were in {self.output} already" if self.prompts_skipped else ""
        speed = f"{measured.tokens} tokens at {measured.throughput_tokens_per_s:.0f} tokens/s"
        return "\n".join([f"{speed}, {measured.mean_acceptance_length:.2f} per round{rate}{skipped}", *notes])

    def _comparison_text(self, measured: Measurement) -> str:
        """Predicted beside measured where the plan predicts this run, then what was gained and whether it was lossless."""
        speedup, predicted = measured.measured_speedup, self.plan.prediction.predicted_speedup
        assert speedup is not None
        if measured.outputs_identical is None:
            lossless = "outputs are samples of the same distribution and are not compared"
        else:
            same = "identical to" if measured.outputs_identical else "DIFFERENT from"
            lossless = f"the output is {same} that of autoregressive decoding over {measured.tokens_compared} tokens"
        reads, peak = measured.measured_target_bytes_per_s, measured.measured_peak_memory_bytes
        rate = f"autoregressive decoding read {format_bytes(reads)}/s; " if reads is not None else ""
        facts = [f"{rate}peak memory {format_bytes(peak)}", *(f"note: {difference}" for difference in self.differences)]
        who = str(measured.strategy)
        gain = f"{who[0].upper()}{who[1:]} decoded {speedup:.2f}x as fast as autoregressive decoding"
        if not measured.strategy.gamma:
            apart = f"The plan is not to speculate: both ways are the same, and their times differ by {abs(speedup - 1):.0%}"
            return "\n".join([*facts, f"{apart}; {lossless}."])
        if not self.comparable:
            planned = (
                f"The plan is for another machine ({self.plan.hardware.name}) or workload, so it predicts nothing of this run."
            )
            return "\n".join([*facts, planned, f"{gain}; {lossless}."])
        rows = [[name, _shown(name, a), _shown(name, b), f"{a / b - 1:+.0%}"] for name, (a, b) in self._quantities().items()]
        low, high = self.plan.prediction.predicted_speedup_low, self.plan.prediction.predicted_speedup_high
        error = f"predicted {predicted:.2f}x ({predicted / speedup - 1:+.0%}; interval {low:.2f} to {high:.2f})"
        return "\n".join([text_table(["", "predicted", "measured", "error"], rows), *facts, "", f"{gain}, {error}; {lossless}."])


def _shown(quantity: str, value: float) -> str:
    formats = {"acceptance rate": "{:.3f}", "tokens per round": "{:.2f}", "tokens/s": "{:.0f}", "speedup": "{:.2f}x"}
    return formats[quantity].format(value) if quantity in formats else format_seconds(value)
