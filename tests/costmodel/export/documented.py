"""Documented options of engines, stored in fields/, and a check that an export uses only these."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from magicdec.costmodel.export.document import Export, Options
from magicdec.costmodel.export.engines import export_plan
from magicdec.costmodel.plans.plan import Plan

TYPES: dict[str, type | tuple[type, ...]] = {
    "integer": int,
    "number": (int, float),
    "string": str,
    "array": list,
    "object": dict,
    "boolean": bool,
    "null": type(None),
}


@cache
def fields(engine: str) -> dict[str, Any]:
    """The documented fields of an engine."""
    return yaml.safe_load((Path(__file__).parent / "fields" / f"{engine}.yaml").read_text(encoding="utf-8"))


def check_values(values: dict[str, Any], known: dict[str, Any]) -> None:
    """Check that every value belongs to a documented field, with its type and range."""
    for name, value in values.items():
        assert name in known, f"{name} is not documented"
        facts = known[name]
        assert isinstance(value, TYPES[facts["type"]]), (name, value)
        assert isinstance(value, bool) == (facts["type"] == "boolean"), (name, value)
        assert value in facts.get("choices", [value]), (name, value)
        for bound, holds in (("minimum", float.__ge__), ("exclusive_minimum", float.__gt__), ("maximum", float.__le__)):
            assert bound not in facts or holds(float(value), float(facts[bound])), (name, value, bound)


def from_text(text: str, facts: dict[str, Any]) -> Any:
    """Parse a value of a command line or an environment variable."""
    return text if facts["type"] == "string" else json.loads(text)


def flags(export: Export) -> dict[str, Any]:
    """The options of an export's command line, checked."""
    known = fields(export.engine)
    arguments = list(export.arguments)
    if arguments[:2] == ["torchrun", "--nproc-per-node"]:
        arguments[:3] = ["python"]
    words = arguments[len(known["command"]) :]
    assert arguments[: len(known["command"])] == known["command"]
    if words and not words[0].startswith("--"):
        words.pop(0)  # the model
    found: dict[str, Any] = {}
    while words:
        name = words.pop(0)
        assert name in known["flags"], f"{name} is not documented"
        assert name not in found
        takes = known["flags"][name]
        found[name] = None if takes["type"] == "null" else from_text(words.pop(0), takes)
    check_values(found, known["flags"])
    return found


def checked(plan: Plan, engine: str, **options: Any) -> Export:
    """Export a plan and check command line, environment and files against the documentation."""
    export = export_plan(plan, engine, Options(**options))
    found, known = flags(export), fields(engine)
    environment = known.get("environment", {})
    check_values({name: from_text(text, environment[name]) for name, text in export.environment.items()}, environment)
    assert all(name in " ".join(map(str, found.values())) or name in export.arguments for name in export.files)
    assert all(note.endswith(".") and "\n" not in note for note in export.notes)
    assert len(set(export.notes)) == len(export.notes)
    return export


def speculative_config(export: Export) -> dict[str, Any]:
    """vLLM's speculative config, checked; empty for none."""
    found = flags(export)
    if "--speculative-config" not in found:
        assert "speculative_config" not in export.python
        return {}
    config = json.loads(found["--speculative-config"])
    assert config == export.python["speculative_config"]
    check_values(config, fields(export.engine)["speculative_config"])
    return config
