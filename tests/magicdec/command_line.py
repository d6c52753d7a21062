"""Calls of the command line, and what they must answer."""

from __future__ import annotations

import json
import re
from typing import Any

from click.testing import CliRunner, Result

from magicdec.cli.group import main

__all__ = ["UNCALIBRATED", "WHERE", "answered", "call", "main", "refused", "shown"]
WHERE = "--model llama-3.1-8b --hardware a100-sxm-80gb --num-gpus 8".split()
UNCALIBRATED = "--model llama-3.1-8b --hardware a100-sxm-40gb --num-gpus 8".split()


def call(*arguments: object, text: str | None = None) -> Result:
    """`text` is what stdin holds."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=text, catch_exceptions=False)


def answered(*arguments: object) -> dict[str, Any]:
    """The JSON document of a call that must succeed."""
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    assert "NaN" not in result.stdout
    return document


def shown(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert "nan" not in result.stdout
    return result.stdout


def refused(*arguments: object, text: str | None = None, problems: int = 1) -> str:
    """What a refused call says: a line for every problem on stderr, nothing on stdout, exit code 2."""
    result = call(*arguments, text=text)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert len(re.findall(r"^error:|^Error:", result.stderr, re.MULTILINE)) == problems, result.stderr
    return result.stderr
