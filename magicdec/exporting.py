"""A plan handed to a serving engine: the document, the text for people, and the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from magicdec.costmodel.export.document import Export, Options, command_text, comment_text, script_text
from magicdec.costmodel.export.engines import export_plan
from magicdec.costmodel.plans.plan import load_plan

from .files import output_file

COMMAND_FILE = "start.sh"


def export_document(plan_file: str, to: str, options: Options, output: str | None) -> tuple[dict[str, Any], str]:
    """Export a plan file, and write it to `output` if that is given: a folder that exists or ends in /, else one script.

    Returns:
        The document and the script that makes the files and starts the engine.
    """
    export = export_plan(load_plan(plan_file), to, options)
    for path, text in _files(export, output).items():
        with output_file(path) as file:
            assert file is not None
            file.write(text)
    document = {
        "engine": export.engine,
        "engine_version": options.engine_version,
        "arguments": list(export.arguments),
        "files": export.files,
        "environment": export.environment,
        "python": export.python,
        "notes": list(export.notes),
    }
    return document, script_text(export)


def _files(export: Export, output: str | None) -> dict[str, str]:
    if output is None:
        return {}
    head = "#!/usr/bin/env bash\n" + comment_text(export)
    if output.endswith("/") or Path(output).is_dir():
        files = {**export.files, COMMAND_FILE: head + command_text(export)}
        return {str(Path(output) / name): text for name, text in files.items()}
    return {output: head + script_text(export)}
