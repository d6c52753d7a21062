"""What is known: hardware profiles, models, and the environment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from magicdec.costmodel.base.units import format_bytes, format_rate
from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.passes.cache import kv_bytes_per_gpu

from ..render.tables import text_table
from .base import Cell, Result, Row

CONTEXTS = (8192, 32_768, 131_072)


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
                parameters(config.params),
                format_bytes(config.weight_bytes),
                format_bytes(config.kv_bytes_per_token),
                f"{config.num_heads}/{config.num_kv_heads}",
                f"{config.max_context_len:,}",
            ]
            for name, config in self.models.items()
        ]
        return text_table(["model", "parameters", "weights", "KV per token", "heads/KV heads", "max context"], rows)


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


@dataclass(frozen=True, repr=False, eq=False)
class ModelReport(Result):
    """One model: its layers by kind, what it weighs, and what each sequence keeps.

    Attributes:
        config: The model.
    """

    config: TransformerConfig

    @property
    def headline(self) -> str:
        size = parameters(self.config.params)
        active = "" if self.config.active_params > 0.9 * self.config.params else f", {parameters(self.config.active_params)} active"
        return f"{self.config.name}: {size} parameters{active}, {format_bytes(self.config.weight_bytes)} of weights"

    def rows(self) -> list[Row]:
        return [{"layers": count, "kind": kind} for kind, count in self._kinds.items()]

    @property
    def _kinds(self) -> dict[str, int]:
        counts = Counter[str]()
        for group in self.config.layers:
            counts[group.layer.title] += group.count
        return dict(counts)

    @property
    def weight_bytes_by_type(self) -> dict[str, float]:
        """Size of the weights by storage type; without weight files, what is no matrix counts in that of activations. [bytes]"""
        if self.config.stored is not None and self.config.stored.bytes_by_type:
            return dict(self.config.stored.bytes_by_type)
        model, sizes = self.config, dict[str, float]()
        parts = [(matrix.dtype, matrix.bytes) for matrix in model.matrices()]
        if not model.tied_embeddings:
            parts.append((model.embedding_dtype or model.dtype, model.embedding_bytes))
        parts.append((model.dtype, model.weight_bytes - sum(size for _, size in parts)))
        for dtype, size in parts:
            sizes[dtype] = sizes.get(dtype, 0.0) + size
        return dict(sorted(sizes.items(), key=lambda item: -item[1]))

    def kept_bytes(self, context_len: int) -> float:
        """KV cache and states of one sequence. [bytes]

        Args:
            context_len: Tokens of the sequence. [tokens]
        """
        return float(kv_bytes_per_gpu(self.config, context_len, 1)) + self.config.state_bytes_per_sequence

    def to_dict(self) -> dict[str, object]:
        model = self.config
        return {
            "name": model.name,
            "family": model.family,
            "num_parameters": model.params,
            "num_active_parameters": model.active_params,
            "num_embedding_parameters": model.embedding_params,
            "num_encoder_parameters": model.vision_params,
            "num_prediction_modules": model.num_mtp,
            "weight_bytes": model.weight_bytes,
            "weight_bytes_by_type": self.weight_bytes_by_type,
            "kv_dtype": model.kv_dtype or model.dtype,
            "kv_bytes_per_token": model.kv_bytes_per_token,
            "growing_kv_bytes_per_token": self._growing,
            "state_bytes_per_sequence": model.state_bytes_per_sequence,
            "bytes_per_sequence": {str(context): self.kept_bytes(context) for context in CONTEXTS},
            "max_context_len": model.max_context_len,
            "num_layers": model.num_layers,
            "layers": [dict(row) for row in self.rows()],
            "notes": list(model.notes),
        }

    @property
    def _growing(self) -> float:
        return self.config.growing_kv_bytes_per_token

    def __str__(self) -> str:
        model = self.config
        facts = [
            ["parameters", parameters(model.params)],
            ["active per token", f"{parameters(model.active_params)} (without the table of input embeddings)"],
            *(
                [["encoders", f"about {parameters(model.vision_params)}: in memory, not in decoding"]]
                if model.vision_params
                else []
            ),
            *([["prediction modules", f"{model.num_mtp}: drafts (`--draft mtp`), not in the above"]] if model.num_mtp else []),
            ["weights", ", ".join(f"{format_bytes(size)} in {dtype}" for dtype, size in self.weight_bytes_by_type.items())],
            [
                "KV cache",
                f"{format_bytes(self._growing)} per token that grows with the context, in {model.kv_dtype or model.dtype}",
            ],
            *self._constant(),
            *([f"a sequence of {context // 1024}k", f"keeps {format_bytes(self.kept_bytes(context))}"] for context in CONTEXTS),
            ["longest context", f"{model.max_context_len:,} tokens"],
        ]
        layers = text_table(["layers", "kind"], [[str(count), kind] for kind, count in self._kinds.items()])
        notes = "".join(f"\nnote: {note}" for note in model.notes)
        told = "\n".join(f"{label:<20}{value}" for label, value in facts)
        return f"{self.headline}\n\n{layers}\n\n{told}{notes}"

    def _constant(self) -> list[list[str]]:
        """What does not grow with the context: windows, and states."""
        model, found = self.config, list[list[str]]()
        windows = model.kv_bytes_per_token - self._growing
        if windows:
            widest = max(limit for _, limit in model.attention_windows if limit is not None)
            found.append(["", f"{format_bytes(windows)} per token within windows, which hold at most {widest:,} tokens"])
        if model.state_bytes_per_sequence:
            found.append(["state", f"{format_bytes(model.state_bytes_per_sequence)} per sequence, whatever its length"])
        return found


def parameters(count: float) -> str:
    """As the field writes them: `8.03B`, `596M`."""
    return format_rate(count, "").replace(" G", "B").replace(" T", "T").replace(" M", "M").replace(" k", "k").strip()
