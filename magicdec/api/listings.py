"""List what is known: profiles, models, and the environment."""

from __future__ import annotations

import os
import platform

from magicdec.costmodel.hardware.catalog import builtin_profiles, resolve_profile
from magicdec.costmodel.models.catalog import builtin_configs

from .. import __version__
from ..inputs.checks import text
from ..inputs.cpu_profile import cpu_profile_file
from ..inputs.names import REFERENCE, find_hardware, find_model
from ..results.base import Cell
from ..results.catalog import EnvironmentReport, ModelList, ModelReport, ProfileList

PACKAGES = ("numpy", "scipy", "pandas", "pydantic", "click", "torch", "safetensors", "tokenizers", "matplotlib")


def profiles(name: str | None = None) -> ProfileList:
    """The shipped hardware profiles, or one machine's.

    Args:
        name: A GPU's name, a profile file, or `local` for what this machine has; None for all shipped profiles. The text of the
            result is then the profile file.

    Raises:
        InputError: Nothing of that name.
    """
    if name is None:
        return ProfileList(tuple(resolve_profile(known) for known in builtin_profiles()))
    return ProfileList((find_hardware(text("name", name)),), as_file=True)


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
