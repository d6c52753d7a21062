"""A CSV file of scenarios with the predictions added."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass

from ..render.tables import text_table
from .base import Result, Row

ADDED_COLUMNS = (
    "predicted_target_step_s",
    "predicted_verify_step_s",
    "predicted_gamma_draft_step_s",
    "predicted_mean_acceptance_length",
    "predicted_speculative_tpot_s",
    "predicted_speedup",
    "predicted_speedup_low",
    "predicted_speedup_high",
    "predicted_optimal_gamma",
    "bound",
    "fits_in_memory",
    "error",
)
PREDICTED = ("predicted_target_step_s", "predicted_step_s", "predicted_mean_acceptance_length", "predicted_ratio")
# Of a file of measurements: the pass that its row timed, rates, and passes of several tokens beside one.
MEASUREMENT_COLUMNS = (*ADDED_COLUMNS[:-3], "predicted_tok_s", "predicted_step_s", "predicted_ratio", *ADDED_COLUMNS[-3:])


@dataclass(frozen=True, repr=False, eq=False)
class ScenarioTable(Result):
    """Scenarios as the file has them, with `ADDED_COLUMNS`.

    Attributes:
        columns: Names, in order.
        cells: A mapping a scenario, as text; empty where something is unknown.
    """

    columns: tuple[str, ...]
    cells: tuple[Mapping[str, str], ...]

    @property
    def predicted(self) -> int:
        """Scenarios with step times, with or without a speedup."""
        return sum(any(row.get(name) for name in PREDICTED) for row in self.cells)

    @property
    def failed(self) -> int:
        """Scenarios that could not be predicted."""
        return sum(bool(row["error"]) for row in self.cells)

    @property
    def headline(self) -> str:
        some = f"{len(self.cells)} scenario{'s' if len(self.cells) > 1 else ''}"
        return f"{some}, {self.failed} of them not predicted (see the error column)" if self.failed else f"{some} predicted"

    def rows(self) -> list[Row]:
        return [dict(row) for row in self.cells]

    def document(self) -> list[Row]:
        return self.rows()

    def to_dict(self) -> dict[str, object]:
        return {"scenarios": self.rows()}

    def to_csv(self) -> str:
        """The file with the predictions added."""
        out = io.StringIO()
        writer = csv.DictWriter(out, self.columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.cells)
        return out.getvalue()

    def __str__(self) -> str:
        named = self.columns[:4] if "hardware" not in self.columns else ()
        if named:
            named = (*named, "predicted_tok_s", "predicted_speedup", "predicted_optimal_gamma", "error")
            return f"{self.headline}\n\n{text_table(named, [[row.get(name, '') for name in named] for row in self.cells])}"
        shown = ("hardware", "target", "batch_size", "context_len", "predicted_speedup", "predicted_optimal_gamma", "error")
        return f"{self.headline}\n\n{text_table(shown, [[row.get(name, '') for name in shown] for row in self.cells])}"
