"""What is known: hardware profiles, models, and the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from magicdec.costmodel.base.units import format_bytes, format_rate
from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.models.transformer import TransformerConfig

from ..render.tables import text_table
from .base import Cell, Result, Row


@dataclass(frozen=True, repr=False, eq=False)
class ProfileList(Result):
    """The shipped hardware profiles.

    Attributes:
        profiles: Those with a file of their own first, then the table of datasheets.
        as_file: One profile, whose text is its file.
    """

    profiles: tuple[HardwareProfile, ...]
    as_file: bool = False

    @property
    def headline(self) -> str:
        if self.as_file:
            return "; ".join(profile.description for profile in self.profiles)
        return f"{len(self.profiles)} hardware profiles, and `cpu`"

    def rows(self) -> list[Row]:
        return [
            {
                "profile": profile.name,
                "bfloat16_flop_per_s": profile.flop_per_s("bfloat16"),
                "memory_bandwidth_bytes_per_s": profile.peak.memory_bandwidth_bytes_per_s,
                "memory_bytes": profile.peak.memory_bytes,
                "ridge_point_flop_per_byte": profile.ridge_point("bfloat16"),
                "calibration": _calibration(profile),
            }
            for profile in self.profiles
        ]

    def document(self) -> list[dict[str, object]]:
        """Everything a profile says, a document each."""
        return [
            {
                "name": profile.name,
                "description": profile.description,
                "aliases": list(profile.aliases),
                "driver_names": list(profile.driver_names),
                "peak": asdict(profile.peak),
                "calibrated": profile.calibrated,
                "calibration": asdict(profile.calibration),
                "sources": dict(profile.sources),
            }
            for profile in self.profiles
        ]

    def to_dict(self) -> dict[str, object]:
        return {"profiles": self.document()}

    def __str__(self) -> str:
        if self.as_file:
            return "".join(profile.text for profile in self.profiles).rstrip("\n")
        rows = [
            [
                profile.name,
                format_rate(profile.flop_per_s("bfloat16"), "FLOP/s"),
                format_rate(profile.peak.memory_bandwidth_bytes_per_s, "B/s"),
                format_bytes(profile.peak.memory_bytes),
                f"{profile.ridge_point('bfloat16'):.0f} FLOP/B",
                _calibration(profile),
            ]
            for profile in self.profiles
        ]
        table = text_table(["profile", "dense bf16", "bandwidth", "memory", "ridge point", "calibration"], rows)
        return (
            f"{table}\n\n`local` is what this machine has; `cpu` is its processor, measured on first use."
            "\n`magicdec profiles NAME` prints one profile, to be copied."
        )


def _calibration(profile: HardwareProfile) -> str:
    engine = profile.calibration.fit_of("engine")
    if engine is not None:
        return f"whole steps, {engine.mean_error:.1%} mean error"
    return "kernels; engine assumed" if profile.calibrated else "none: datasheet, default efficiencies"


@dataclass(frozen=True, repr=False, eq=False)
class ModelList(Result):
    """The reference model and the built-in configurations.

    Attributes:
        models: By name.
    """

    models: Mapping[str, TransformerConfig]

    @property
    def headline(self) -> str:
        return f"{len(self.models)} models; a config.json or a checkpoint directory works as well"

    def rows(self) -> list[Row]:
        return [
            {
                "name": name,
                "family": config.family,
                "params": config.params,
                "weight_bytes": config.weight_bytes,
                "kv_bytes_per_token": config.kv_bytes_per_token,
                "max_context_len": config.max_context_len,
            }
            for name, config in self.models.items()
        ]

    def document(self) -> list[Row]:
        return [dict(row) for row in self.rows()]

    def to_dict(self) -> dict[str, object]:
        return {"models": self.document()}

    def __str__(self) -> str:
        rows = [
            [
                name,
                _parameters(config.params),
                format_bytes(config.weight_bytes),
                format_bytes(config.kv_bytes_per_token),
                f"{config.num_heads}/{config.num_kv_heads}",
                f"{config.max_context_len:,}",
            ]
            for name, config in self.models.items()
        ]
        return text_table(["model", "parameters", "weights", "KV per token", "heads/KV heads", "max context"], rows)


def _parameters(count: float) -> str:
    """As the field writes them: `8.03B`, `596M`."""
    return format_rate(count, "").replace(" G", "B").replace(" T", "T").replace(" M", "M").replace(" k", "k").strip()


@dataclass(frozen=True, repr=False, eq=False)
class EnvironmentReport(Result):
    """Versions and machine: what to paste into a bug report.

    Attributes:
        facts: By name.
    """

    facts: Mapping[str, Cell]

    @property
    def headline(self) -> str:
        return f"magicdec {self.facts['magicdec']} on {self.facts['device']}"

    def rows(self) -> list[Row]:
        return [{"name": name, "value": value} for name, value in self.facts.items()]

    def to_dict(self) -> dict[str, object]:
        return dict(self.facts)

    def __str__(self) -> str:
        return text_table(["", ""], [[name, str(value)] for name, value in self.facts.items()])
