"""Names to things: which model, machine and acceptance curves a user means, `reference` and `cpu` included."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from costmodel.acceptance import AcceptanceCurve, curves_beside, published_curves
from costmodel.errors import bad
from costmodel.evaluate import Draft
from costmodel.hardware import HardwareProfile, load_profile, resolve_profile
from costmodel.strategy import KV_POLICIES, KvPolicy
from costmodel.transformer import TransformerConfig, load_config, resolve_model
from executor.user_cache import cache_folder
from magicdec import __version__

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
        from executor.reference_model import reference_model_dir

        return Model(load_config(reference_model_dir(), name=REFERENCE), reference_model_dir())
    return Model(resolve_model(name, where), Path(name) if Path(name).is_dir() else None)


def find_hardware(name: str, *, remeasure: bool = False, progress: Callable[[str], None] = lambda text: None) -> HardwareProfile:
    """A shipped profile, a profile file, or this machine's CPU, measured once and kept in the user's cache folder."""
    if name != CPU:
        return resolve_profile(name)
    file = cpu_profile_file()
    if remeasure or not file.is_file():
        from magicdec.calibration import measure_cpu, write_profile

        progress(f"measuring this machine's CPU, once; the profile is kept in {file}")
        write_profile(measure_cpu(), file)
    return load_profile(file)


def cpu_profile_file() -> Path:
    """Where this machine's own profile is kept: a file for each processor, number of cores and version of what ran."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    processor = next((line for line in lines if line.startswith("model name")), platform.processor())
    settings = [os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "MAGICDEC_CPU_KERNEL")]
    facts = [processor, str(os.cpu_count()), *settings, version("torch"), __version__]
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
    return cache_folder() / f"cpu-{key}.yaml"


def executed(config: TransformerConfig, hardware: HardwareProfile) -> TransformerConfig:
    """The model in the type it runs in there: on a CPU, float32."""
    return config.with_dtype("float32") if hardware.name == CPU and config.bytes_per_element < 4 else config


def find_draft(text: str, kv_policy: str | None, hardware: HardwareProfile, kv_budget: object = None) -> Draft:
    """What `--draft` and `--kv-policy` mean: `none`, `self`, or the name of a smaller model.

    A self draft reads by StreamingLLM unless told otherwise, a smaller model its whole KV cache unless a
    budget is given.
    """
    if kv_policy is not None and kv_policy not in KV_POLICIES:
        raise bad("--kv-policy", "", " or ".join(KV_POLICIES), repr(kv_policy))
    policy: KvPolicy | None = kv_policy
    if text == "none":
        return Draft()
    if text == "self":
        if policy == "full":
            raise bad("--kv-policy", "", "a sparse policy for a self draft, which else costs what the target does", "full")
        return Draft("self", policy or "streaming_llm")
    sparse: KvPolicy = "streaming_llm" if kv_budget is not None else "full"
    return Draft("model", policy or sparse, executed(find_model(text, "--draft").config, hardware))
