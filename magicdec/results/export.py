"""A plan in the words of a serving engine."""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

from magicdec.costmodel.export.document import Export, command_text, comment_text, script_text
from magicdec.costmodel.export.pricing import Price

from ..files.writing import write_text
from .base import Result, Row, known

COMMAND_FILE = "start.sh"


@dataclass(frozen=True, repr=False, eq=False)
class ExportResult(Result):
    """An exported plan.

    Attributes:
        export: Command, files, environment and notes.
        engine_version: As the user gave it; None for the latest known.
        price: What the command is predicted to do; None if the plan's model or machine is not known here.
    """

    export: Export
    engine_version: str | None = None
    price: Price | None = None

    def save(self, output: str | Path) -> list[str]:
        """Write the export: the files one by one into a folder that exists or ends in /, else one script.

        Returns:
            The paths written.

        Raises:
            InputError: A file cannot be written.
        """
        texts = self._texts(output)
        for path, text in texts.items():
            write_text(path, text)
        return list(texts)

    def paths(self, output: str | Path) -> list[str]:
        """The paths that `save` writes."""
        return list(self._texts(output))

    def _texts(self, output: str | Path) -> dict[str, str]:
        head = "#!/usr/bin/env bash\n" + comment_text(self.export)
        if str(output).endswith("/") or os.path.isdir(output):
            named = {**self.export.files, COMMAND_FILE: head + command_text(self.export)}
            return {str(Path(output) / name): text for name, text in named.items()}
        return {str(output): head + script_text(self.export)}

    @property
    def notes(self) -> tuple[str, ...]:
        """What the engine cannot express."""
        return self.export.notes

    @property
    def headline(self) -> str:
        return f"{self.export.engine}: {' '.join(self.export.arguments)}"

    def rows(self) -> list[Row]:
        return [{"argument": argument} for argument in self.export.arguments]

    def to_dict(self) -> dict[str, object]:
        return {
            "engine": self.export.engine,
            "engine_version": self.engine_version,
            "arguments": list(self.export.arguments),
            "files": dict(self.export.files),
            "environment": dict(self.export.environment),
            "python": deepcopy(dict(self.export.python)),
            "priced": self._priced(),
            "notes": list(self.export.notes),
        }

    def _priced(self) -> dict[str, object] | None:
        price, served = self.price, self.export.served
        if price is None or served is None:
            return None
        return {
            "predicted_speedup": known(price.speedup),
            "predicted_speedup_low": known(price.speedup_low),
            "predicted_speedup_high": known(price.speedup_high),
            "planned_speedup": price.planned_speedup,
            "predicted_tpot_s": known(price.tpot_s),
            "throughput_tokens_per_s": known(price.throughput_tokens_per_s),
            "memory_bytes": price.memory_bytes,
            "usable_memory_bytes": price.usable_bytes,
            "fits_in_memory": price.fits,
            "runs": asdict(served),
        }

    def __str__(self) -> str:
        return script_text(self.export).rstrip()
