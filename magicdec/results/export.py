"""A plan in the words of a serving engine."""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from magicdec.costmodel.export.document import Export, command_text, comment_text, script_text

from ..files.writing import write_text
from .base import Result, Row

COMMAND_FILE = "start.sh"


@dataclass(frozen=True, repr=False, eq=False)
class ExportResult(Result):
    """An exported plan.

    Attributes:
        export: Command, files, environment and notes.
        engine_version: As the user gave it; None for the latest known.
    """

    export: Export
    engine_version: str | None = None

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
            "notes": list(self.export.notes),
        }

    def __str__(self) -> str:
        return script_text(self.export).rstrip()
