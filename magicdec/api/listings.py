"""List what is known: profiles, models, and the environment."""

from __future__ import annotations

from magicdec.costmodel.hardware.catalog import builtin_profiles, resolve_profile
from magicdec.costmodel.models.catalog import builtin_configs

from .. import __version__
from ..inputs.cpu_profile import cpu_profile_file
from ..inputs.names import REFERENCE, find_model
from ..results.base import Cell
from ..results.catalog import EnvironmentReport, ModelList, ProfileList

PACKAGES = ("numpy", "scipy", "pandas", "pydantic", "click", "torch", "safetensors", "tokenizers", "matplotlib")


def profiles() -> ProfileList:
    """The shipped hardware profiles."""
    return ProfileList(tuple(resolve_profile(name) for name in builtin_profiles()))


def models() -> ModelList:
    """The reference model and every built-in configuration."""
    return ModelList({name: find_model(name).config for name in (REFERENCE, *builtin_configs())})


def environment() -> EnvironmentReport:
    """Versions and machine, for bug reports."""
    from importlib.metadata import PackageNotFoundError, version

    facts: dict[str, Cell] = {"magicdec": __version__, **_machine()}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = None
    return EnvironmentReport({**facts, "cpu_profile": _cpu_profile()})


def _machine() -> dict[str, Cell]:
    """What a measurement here would depend on; without torch, which may be what the bug report is about, the machine alone."""
    try:
        from magicdec.executor.measuring.measurement import environment
    except ImportError:
        import os
        import platform

        from magicdec.executor.system.machine import processor_name

        system = f"{platform.system()} {platform.release()}"
        return {"device": processor_name(), "python": platform.python_version(), "system": system, "cores": os.cpu_count()}
    return dict(environment())


def _cpu_profile() -> str:
    """Where the profile of this CPU is kept; it depends on the version of torch."""
    try:
        file = cpu_profile_file()
    except ImportError:
        return "not measured yet"
    return str(file) if file.is_file() else "not measured yet"
