"""List what is known: profiles, models, and the environment."""

from __future__ import annotations

import os
import platform

from magicdec.costmodel.hardware.catalog import builtin_profiles, resolve_profile
from magicdec.costmodel.models.catalog import builtin_configs

from .. import __version__
from ..inputs.cpu_profile import cpu_profile_file
from ..inputs.names import REFERENCE, find_model
from ..results.base import Cell
from ..results.catalog import EnvironmentReport, ModelList, ModelReport, ProfileList

PACKAGES = ("numpy", "scipy", "pandas", "pydantic", "click", "torch", "safetensors", "tokenizers", "matplotlib")


def profiles() -> ProfileList:
    """The shipped hardware profiles."""
    return ProfileList(tuple(resolve_profile(name) for name in builtin_profiles()))


def models(name: str | None = None) -> ModelList | ModelReport:
    """The reference model and every built-in configuration; or one model, explained.

    Args:
        name: A name, an id on the Hub, a `config.json`, a GGUF file or a checkpoint directory to explain; None to list what is
            built in.

    Raises:
        InputError: Nothing of that name, or a file that is no model configuration.
    """
    if name is not None:
        return ModelReport(find_model(name, "name", drafts=True).config)
    return ModelList({name: find_model(name).config for name in (REFERENCE, *builtin_configs())})


def environment() -> EnvironmentReport:
    """Versions and machine, for bug reports; without torch, what can be told without it."""
    from importlib.metadata import PackageNotFoundError, version

    facts: dict[str, Cell] = {"magicdec": __version__, **_machine()}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = None
    if facts["torch"] is not None:
        file = cpu_profile_file()
        facts["cpu_profile"] = str(file) if file.is_file() else "not measured yet"
    return EnvironmentReport(facts)


def _machine() -> dict[str, Cell]:
    try:
        from magicdec.executor.measuring.measurement import environment as measured_environment
    except ImportError:
        from magicdec.executor.system.machine import processor_name

        return {
            "device": processor_name(),
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()}",
            "cores": os.cpu_count(),
        }
    return dict(measured_environment())
