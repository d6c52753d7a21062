"""Calls of the command line, and what they must answer."""

from __future__ import annotations

import json
import re
from typing import Any

from click.testing import CliRunner, Result

from magicdec.cli import main

WHERE = "--model llama-3.1-8b --hardware a100-sxm-80gb --num-gpus 8".split()
UNCALIBRATED = "--model llama-3.1-8b --hardware a100-sxm-40gb --num-gpus 8".split()


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def answered(*arguments: str) -> dict[str, Any]:
    """The JSON document of a call that must succeed."""
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    assert "NaN" not in result.stdout
    return document


def shown(*arguments: str) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert "nan" not in result.stdout
    return result.stdout


def refused(*arguments: str) -> str:
    """What a refused call says: one message on stderr, nothing on stdout, exit code 2."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert len(re.findall(r"^error:|^Error:", result.stderr, re.MULTILINE)) == 1, result.stderr
    return result.stderr
