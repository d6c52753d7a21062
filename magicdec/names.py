"""Names to things: which model, machine and acceptance curves a user means, `reference` and `cpu` included."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.hardware.profile import SCHEMA_VERSION, HardwareProfile, load_profile, resolve_profile
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.models.hf_config import load_config
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.plans.strategy import COMPRESSED_DTYPES, DRAFT_KINDS, KV_POLICIES, DraftKind
from magicdec.costmodel.speculation.acceptance import AcceptanceCurve, curves_beside, published_curves
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.executor.kernels import build as compiled
from magicdec.executor.model.dtypes import cpu_execution
from magicdec.executor.system.cache_dir import cache_folder
from magicdec.executor.system.machine import processor_name

from . import __version__

REFERENCE, CPU = "reference", "cpu"
DEFAULT_KV_BUDGET = 512


@dataclass(frozen=True)
class Model:
    """A model by name.

    Attributes:
        config: Its facts.
        folder: Its checkpoint directory, if the name is one.
    """

    config: TransformerConfig
    folder: Path | None

    @property
    def curves(self) -> tuple[AcceptanceCurve, ...]:
        """Acceptance curves measured on it, then the published ones."""
        own = curves_beside(self.folder) if self.folder else ()
        return (*(replace(curve, target=self.config.name) for curve in own), *published_curves())


def find_model(name: str, where: str = "--model") -> Model:
    """The shipped reference model, a built-in configuration, a config.json or a checkpoint directory."""
    if name == REFERENCE:
        from magicdec.executor.reference_model import reference_model_dir

        return Model(load_config(reference_model_dir(), name=REFERENCE), reference_model_dir())
    return Model(resolve_model(name, where), Path(name) if Path(name).is_dir() else None)


def find_hardware(name: str, *, remeasure: bool = False, progress: Callable[[str], None] = lambda text: None) -> HardwareProfile:
    """A shipped profile, a profile file, or this machine's CPU, measured once and kept in the user's cache folder."""
    if name != CPU:
        return resolve_profile(name)
    file = cpu_profile_file()
    if remeasure or not file.is_file():
        from .calibration import measure_cpu, write_profile

        progress(f"measuring this machine's CPU, once; the profile is kept in {file}")
        write_profile(measure_cpu(), file)
    return load_profile(file)


def cpu_profile_file() -> Path:
    """Where this machine's own profile is kept: a file for each processor, number of cores, kernel and version of what ran."""
    from importlib.metadata import version  # slow to import, and only needed here

    settings = [os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "MAGICDEC_CPU_KERNEL", "MAGICDEC_CFLAGS")]
    facts = [processor_name(), str(os.cpu_count()), *settings, version("torch"), __version__, str(SCHEMA_VERSION)]
    facts += [str(compiled.compiler()), *compiled.sources().values()]
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
    return cache_folder() / f"cpu-{key}.yaml"


def executed(config: TransformerConfig, hardware: HardwareProfile, tensor_parallel: int = 1) -> TransformerConfig:
    """The model in the types it runs in there, shared by so many processes."""
    if hardware.name != CPU:
        return config
    return cpu_execution(config, kernels=tensor_parallel == 1 and config.dtype in hardware.peak.flop_per_s)


def find_draft(
    text: str,
    kv_policy: str | None,
    deployment: Deployment,
    kv_budget: object = None,
    *,
    kv_dtype: str | None = None,
    weight_dtype: str | None = None,
    tensor_parallel: int | None = None,
) -> Draft:
    """What `--draft` and the options beside it mean: `none`, `self`, `ngram`, `eagle3`, `mtp`, or the name of a smaller model.

    A self draft reads by StreamingLLM unless told otherwise or compressed, a smaller model its whole KV cache unless a
    budget is given.
    """
    kind: DraftKind = text if text in DRAFT_KINDS and text != "model" else "model"
    compressed = kv_dtype is not None or weight_dtype is not None
    sparse = kv_budget is not None or (kind == "self" and not compressed)
    policy = one_of("--kv-policy", kv_policy, KV_POLICIES) or ("streaming_llm" if sparse and kind in ("self", "model") else "full")
    if kind not in ("self", "model") and policy != "full":
        raise bad("--kv-policy", "", f"none beside --draft {text}, which has no KV budget", repr(kv_policy))
    if kind == "self" and policy == "full" and not compressed:
        raise bad("--kv-policy", "", "a sparse policy for a self draft, which else costs what the target does", "full")
    if compressed and kind != "self":
        option = "--draft-kv-dtype" if kv_dtype is not None else "--draft-weight-dtype"
        raise bad(option, "", "--draft self beside it", text)
    if tensor_parallel is not None and kind != "model":
        raise bad("--draft-tensor-parallel", "", "a draft model beside it", text)
    return Draft(
        kind,
        policy,  # type: ignore[arg-type]
        executed(find_model(text, "--draft").config, deployment.hardware, deployment.tensor_parallel) if kind == "model" else None,
        tensor_parallel,
        one_of("--draft-kv-dtype", kv_dtype, COMPRESSED_DTYPES),  # type: ignore[arg-type]
        one_of("--draft-weight-dtype", weight_dtype, COMPRESSED_DTYPES),  # type: ignore[arg-type]
    )


def one_of(option: str, value: str | None, known: Sequence[str]) -> str | None:
    """The value of an option that takes one of a few; None if it was not given."""
    if value is not None and value not in known:
        raise bad(option, "", " or ".join(known), repr(value))
    return value
