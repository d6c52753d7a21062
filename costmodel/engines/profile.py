"""What a serving engine adds to the kernels of a machine: overheads, its own kernels, and how verification reads the KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, TypeVar

from ..base.records import STRICT, Limits, NotNegative
from ..hardware.profile import EngineLaw, HardwareProfile
from ..kernels.attention import AttentionLaw
from ..kernels.collectives import AllreduceLaw
from ..kernels.gemm import GemmLaw
from ..kernels.quantised import QuantisedLaw
from ..models.transformer import MODEL_TITLES, TransformerConfig, model_kind
from ..passes.roofline import VerifyKernel
from ..plans.strategy import DraftKind
from .machines import MACHINE_TITLES, MachineClass, machine_class

LawT = TypeVar("LawT", AttentionLaw, GemmLaw, AllreduceLaw)
Error = Annotated[float, Limits(ge=0.0, le=3.0)]
Origin = Literal["left out", "in sample", "estimated"]


@dataclass(frozen=True)
class Evidence:
    """One set of measurements behind a profile.

    Attributes:
        quantity: What was measured: `step`, `forward pass`, `speedup`, `served rate`, `verification`, `kernel`.
        data: The measurements, with their source.
        machines: Names of the machines.
        models: Kinds of models: `dense`, `experts`, `recurrent`.
        weights: Types of the weights.
        points: Number of measurements.
        left_out: What was left out in turn, or `nothing` for an error in sample.
        median_error, p90_error: Absolute relative errors of what was left out. [ratio]
    """

    quantity: str
    data: str
    machines: tuple[str, ...]
    models: tuple[str, ...]
    weights: tuple[str, ...]
    points: Annotated[int, Limits(ge=1, le=1_000_000_000)]
    left_out: str
    median_error: NotNegative
    p90_error: NotNegative

    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class MachineTerms:
    """What an engine does on some classes of machines.

    Attributes:
        classes: The classes.
        engine: Overheads.
        verify_kernel: How verification reads the KV cache.
        kernel: Name of the attention kernel, for people.
        step_error, speedup_error: Half widths of the intervals of step times and of speedups at a known acceptance: at least nine
            tenths of the errors lie within. [ratio]
        step_error_from, speedup_error_from: Which errors these are: of rows that were left out of a fit, of rows that are in it,
            or none that were measured.
        gemm, attention, verify_attention, allreduce: Parameters of kernel laws that the engine has of its own.
        quantised: Products with quantised weights, if the engine has kernels of its own for them.
        table_kernels: Whether it uses the attention kernels of the public tables where a profile was fitted to others.
    """

    classes: tuple[MachineClass, ...]
    engine: EngineLaw = field(default_factory=EngineLaw)
    verify_kernel: VerifyKernel = "shared_kv_splitkv"
    kernel: str = ""
    step_error: Error = 0.25
    speedup_error: Error = 0.25
    step_error_from: Origin = "estimated"
    speedup_error_from: Origin = "estimated"
    gemm: dict[str, float | int | bool] = field(default_factory=dict)
    attention: dict[str, float | int | bool] = field(default_factory=dict)
    verify_attention: dict[str, float | int | bool] = field(default_factory=dict)
    allreduce: dict[str, float | int | bool] = field(default_factory=dict)
    quantised: QuantisedLaw | None = None
    table_kernels: bool = True

    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class EngineProfile:
    """A serving engine.

    Attributes:
        schema_version: Version of this format.
        name: Name on the command line.
        title: Its name as people write it.
        versions: Versions that the numbers were measured with.
        drafts: Kinds of drafts that it can run.
        machines: What it does, by class of machine; the first that has a class counts.
        other_class_error: What an interval grows by on a class without data of its own; estimated, except for llama.cpp. [ratio]
        other_class_speedup_error: The same for the interval of a speedup, if that differs. [ratio]
        other_model_error: The same for a kind of model without data; estimated, except for vLLM. [ratio]
        aliases: Other names.
        uneven_split: Whether it splits a model over any number of GPUs, not only over divisors of the heads.
        rest_dtype: What it stores the 16-bit matrices of a checkpoint in whose experts are quantised; None for 16 bits.
        evidence: The measurements behind it.
    """

    schema_version: Annotated[int, Limits(ge=1, le=1)]
    name: str
    title: str
    versions: str
    drafts: tuple[DraftKind, ...]
    machines: tuple[MachineTerms, ...]
    other_class_error: Error = 0.15
    other_class_speedup_error: Error | None = None
    other_model_error: Error = 0.15
    aliases: tuple[str, ...] = ()
    uneven_split: bool = False
    rest_dtype: str | None = None
    evidence: tuple[Evidence, ...] = ()

    __pydantic_config__ = STRICT

    def terms(self, hardware: HardwareProfile) -> MachineTerms:
        """What it does on a machine; on a class that it has no terms for, what it does on those listed first."""
        kind = machine_class(hardware)
        return next((terms for terms in self.machines if kind in terms.classes), self.machines[0])

    def stored(self, model: TransformerConfig) -> TransformerConfig:
        """The model in the types that this engine stores it in."""
        quantised = model.expert_dtype is not None and model.linear_dtype is None
        if self.rest_dtype is None or not quantised:
            return model
        head = None if model.tied_embeddings else self.rest_dtype
        return replace(model.compressed(weight_dtype=self.rest_dtype), embedding_dtype=self.rest_dtype, head_dtype=head)

    def on(self, hardware: HardwareProfile) -> HardwareProfile:
        """The machine as this engine uses it: its kernel laws, with what the engine has of its own in their place.

        Args:
            hardware: The machine, with the calibration of its file.
        """
        terms, known = self.terms(hardware), hardware.calibration
        attention = known.table_attention if terms.table_kernels and known.table_attention is not None else known.attention
        attention = changed(attention, terms.attention)
        verify = changed(attention, terms.verify_attention) if terms.verify_attention else None
        engine = terms.engine
        if "," in hardware.name:  # a list of devices: handing over between them is part of their calibration
            engine = replace(engine, step_overhead_s=engine.step_overhead_s + known.engine.step_overhead_s)
        calibration = replace(
            known,
            gemm=changed(known.gemm, terms.gemm),
            attention=attention,
            verify_attention=verify,
            allreduce=changed(known.allreduce, terms.allreduce),
            engine=engine,
            quantised=terms.quantised,
        )
        return replace(hardware, calibration=calibration)

    def step_error(self, hardware: HardwareProfile, model: TransformerConfig) -> float:
        """Half width of the interval of a step time, wider on machines and models unlike its data. [ratio]"""
        return self.terms(hardware).step_error + self._widening(hardware, model, self.other_class_error)

    def speedup_error(self, hardware: HardwareProfile, model: TransformerConfig) -> float:
        """The same of a speedup at a known acceptance. [ratio]"""
        other = self.other_class_error if self.other_class_speedup_error is None else self.other_class_speedup_error
        return self.terms(hardware).speedup_error + self._widening(hardware, model, other)

    def _widening(self, hardware: HardwareProfile, model: TransformerConfig, other_class_error: float) -> float:
        other_class = machine_class(hardware) not in {kind for terms in self.machines for kind in terms.classes}
        other_model = bool(self.evidence) and model_kind(model) not in {kind for one in self.evidence for kind in one.models}
        return other_class_error * other_class + self.other_model_error * other_model

    def provenance(self, hardware: HardwareProfile, model: TransformerConfig) -> str:
        """Where its numbers come from, and what here is unlike that; a clause for people."""
        terms = self.terms(hardware)
        steps = [one for one in self.evidence if hardware.name in one.machines] or list(self.evidence)
        data = f"fitted to {steps[0].data}" if steps else "no measurements of its own: overheads assumed"
        kernel = f", verification by {terms.kernel}" if terms.kernel else ""
        unlike = self.differences(hardware, model)
        errors = (
            f"; nine tenths of errors within {terms.step_error:.0%} (steps, {terms.step_error_from}) and"
            f" {terms.speedup_error:.0%} (speedups, {terms.speedup_error_from})"
        )
        wider = f"; {' and '.join(unlike)}: intervals are wider" if unlike else ""
        return f"{data}{kernel}{errors}{wider}"

    def differences(self, hardware: HardwareProfile, model: TransformerConfig) -> tuple[str, ...]:
        """What is unlike all measurements behind this profile, in words: the class of the machine, the kind of model."""
        kind = machine_class(hardware)
        found = []
        if not any(kind in terms.classes for terms in self.machines):
            found.append(f"no data of {MACHINE_TITLES[kind]}")
        if self.evidence and not any(model_kind(model) in one.models for one in self.evidence):
            found.append(f"none of {MODEL_TITLES[model_kind(model)]}")
        return tuple(found)


def changed(law: LawT, values: Mapping[str, Any]) -> LawT:
    """A law with other values of some parameters."""
    return replace(law, **values)
