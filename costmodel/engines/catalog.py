"""Engine profiles by name: the shipped ones, and files of users."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from ..base.errors import bad
from ..base.files import read_text
from ..base.yaml_text import load_mapping, load_shipped
from ..hardware.profile import EngineLaw
from ..kernels.quantised import QuantisedLaw
from .profile import EngineProfile, Evidence, MachineTerms

FOLDER = Path(__file__).parents[2] / "hardware_profiles" / "engines"


@cache
def engine_files() -> dict[str, Path]:
    """The files of the shipped engine profiles, by name."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}


@cache
def builtin_engine(name: str) -> EngineProfile:
    """A shipped engine profile. Tests validate all of them, so that a start does not have to."""
    return _shipped(load_shipped(engine_files()[name].read_text(encoding="utf-8")))


def find_engine(name: str, where: str = "engine") -> EngineProfile:
    """Find an engine by name, or read its profile from a file.

    Args:
        name: What the user wrote: a name in any spelling, with or without a version; or a path.
        where: The parameter it was given for, for error messages.

    Raises:
        InputError: No engine has this name, or the file is invalid.
    """
    if name.endswith((".yaml", ".yml")):
        return parse_engine(read_text(name, "engine profile"), where=name)
    found = engine_named(name)
    if found is None:
        import difflib

        close = difflib.get_close_matches(name.lower(), engine_files(), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise bad(where, "", f"{', '.join(engine_files())}, or a path to an engine profile{hint}", repr(name))
    return builtin_engine(found)


def engine_named(text: str) -> str | None:
    """The shipped engine that a text names, such as `vLLM 0.28.0 FA3`; None if it names none."""
    words = text.lower().replace("_", "-")
    if words in engine_files():
        return words
    for fragment, name in NAMED:
        if fragment in words:
            return name
    return None


# What a text that names an engine has in it; the first counts.
NAMED = (
    ("vegas", "vllm-vegas"),
    ("vllm", "vllm"),
    ("sglang", "sglang"),
    ("tensorrt", "tensorrt-llm"),
    ("trt", "tensorrt-llm"),
    ("llama.cpp", "llama.cpp"),
    ("llamacpp", "llama.cpp"),
    ("llama-cpp", "llama.cpp"),
    ("triton", "triton"),
    ("transformers", "transformers"),
    ("hugging", "transformers"),
)


def parse_engine(text: str, *, where: str) -> EngineProfile:
    """Parse the YAML text of an engine profile.

    Args:
        text: Content of the file.
        where: The file, for error messages.

    Raises:
        InputError: Lists every problem with its key.
    """
    from ..base.validation import validate_mapping  # pydantic is slow to import

    return validate_mapping(EngineProfile, load_mapping(text, where, "an engine profile"), where)


def _shipped(raw: dict[str, Any]) -> EngineProfile:
    machines = tuple(_terms(terms) for terms in raw.pop("machines"))
    evidence = tuple(
        Evidence(**{**one, **{key: tuple(one[key]) for key in ("machines", "models", "weights")}})
        for one in raw.pop("evidence", ())
    )
    lists: dict[str, Any] = {key: tuple(raw.pop(key, ())) for key in ("drafts", "aliases")}
    return EngineProfile(**raw, **lists, machines=machines, evidence=evidence)


def _terms(raw: dict[str, Any]) -> MachineTerms:
    quantised = raw.pop("quantised", None)
    return MachineTerms(
        classes=tuple(raw.pop("classes")),
        engine=EngineLaw(**raw.pop("engine", {})),
        quantised=QuantisedLaw(**quantised) if quantised else None,
        **raw,
    )
