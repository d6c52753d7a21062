"""Take in what other tools measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from magicdec.costmodel.base.errors import InputError, Problem

from ..files.writing import write_text
from ..importing.measured import Measured
from ..importing.recognise import read_results
from ..inputs.checks import optional_text, some_names
from ..results.imported import Imported


def import_results(
    files: str | Path | Sequence[str | Path],
    *,
    model: str | None = None,
    hardware: str | None = None,
    engine: str | None = None,
    quant: str | None = None,
    output: str | None = None,
) -> Imported:
    """Read results of other tools as measurements: vLLM, SGLang and llama.cpp benchmarks, logs and metrics.

    Args:
        files: The files, each of one tool.
        model, hardware, engine, quant: What ran and where, for files that do not say it or say it in other words.
        output: Write the measurements as CSV to this file (`-` for standard output); `validate` and `predict_scenarios` read it.

    Raises:
        InputError: A file cannot be read, or is of no known tool. All bad files are named; nothing is written then.
    """
    model, hardware = optional_text("model", model), optional_text("hardware", hardware)
    engine, quant = optional_text("engine", engine), optional_text("quant", quant)
    output = optional_text("output", output)
    found, problems = list[Measured](), list[Problem]()
    for file in some_names("files", files):
        try:
            found += read_results(file)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*problems)
    told = [
        replace(one, model=model or one.model, gpu=hardware or one.gpu, engine=engine or one.engine, quant=quant or one.quant)
        for one in found
    ]
    result = Imported(tuple(told), output)
    if output is not None:
        write_text(output, result.csv())
    return result
