"""What is known: profiles, models, and the environment."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from magicdec.costmodel.base.units import format_bytes, format_rate
from magicdec.costmodel.hardware.profile import HardwareProfile, builtin_profiles, resolve_profile
from magicdec.costmodel.models.catalog import builtin_configs

from . import __version__, text
from .names import REFERENCE, find_model


def list_profiles() -> tuple[list[dict[str, Any]], str]:
    """Every shipped profile."""
    documents, rows = [], []
    for name in builtin_profiles():
        profile = resolve_profile(name)
        peak = profile.peak
        rate = profile.flop_per_s("bfloat16")
        documents.append(
            {
                "name": name,
                "description": profile.description,
                "aliases": list(profile.aliases),
                "peak": asdict(peak),
                "calibrated": profile.calibrated,
                "calibration": asdict(profile.calibration),
                "sources": profile.sources,
            }
        )
        rows.append(
            [
                name,
                format_rate(rate, "FLOP/s"),
                format_rate(peak.memory_bandwidth_bytes_per_s, "B/s"),
                format_bytes(peak.memory_bytes),
                f"{profile.ridge_point('bfloat16'):.0f} FLOP/B",
                _prices(profile),
            ]
        )
    header = ["profile", "dense bf16", "bandwidth", "memory", "ridge point", "prices"]
    return documents, text.table(header, rows) + "\n\n`cpu` is this machine, measured when first used."


def _prices(profile: HardwareProfile) -> str:
    engine = profile.calibration.fit_of("engine")
    if engine is not None:
        return f"whole steps calibrated, {engine.mean_error:.1%} mean error"
    return "kernels calibrated, engine assumed" if profile.calibrated else "datasheet, default efficiencies"


def list_models() -> tuple[list[dict[str, Any]], str]:
    """The reference model and every built-in configuration."""
    documents, rows = [], []
    for name in (REFERENCE, *builtin_configs()):
        config = find_model(name).config
        facts = {
            "name": name,
            "family": config.family,
            "params": config.params,
            "weight_bytes": config.weight_bytes,
            "kv_bytes_per_token": config.kv_bytes_per_token,
            "max_context_len": config.max_context_len,
        }
        documents.append(facts)
        rows.append(
            [
                name,
                format_rate(config.params, ""),
                format_bytes(config.weight_bytes),
                format_bytes(config.kv_bytes_per_token),
                f"{config.num_heads}/{config.num_kv_heads}",
                str(config.max_context_len),
            ]
        )
    header = ["model", "parameters", "weights", "KV per token", "heads/KV heads", "positions"]
    return documents, text.table(header, rows)


def describe_environment() -> tuple[dict[str, Any], str]:
    """Versions and machine."""
    from importlib.metadata import PackageNotFoundError, version

    from magicdec.executor.measuring.measurement import environment

    from .names import cpu_profile_file

    facts = {"magicdec": __version__, **environment().model_dump()}
    for package in ("numpy", "scipy", "pandas", "pydantic", "click", "safetensors", "tokenizers", "matplotlib"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = None
    facts["cpu_profile"] = str(cpu_profile_file()) if cpu_profile_file().is_file() else "not measured yet"
    return facts, text.table(["", ""], [[name, str(value)] for name, value in facts.items()])
