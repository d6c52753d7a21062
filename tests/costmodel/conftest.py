"""Shared fixtures of the cost model tests: models and hardware profiles, and hypothesis without deadlines."""

from __future__ import annotations

from dataclasses import replace

import hypothesis
import pytest

from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.hardware.profile import Calibration, HardwareProfile
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.models.transformer import TransformerConfig

hypothesis.settings.register_profile(
    "no-clock",
    deadline=None,  # a slow machine is no failure
    database=None,
    derandomize=True,
    max_examples=30,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink),
)
hypothesis.settings.load_profile("no-clock")


@pytest.fixture(scope="session")
def llama() -> TransformerConfig:
    """Llama-3.1-8B: grouped queries, 8 KV heads, 131,072 bytes of KV a token."""
    return resolve_model("Llama-3.1-8B")


@pytest.fixture(scope="session")
def llama2() -> TransformerConfig:
    """Llama-2-7B with 32k positions: multi-head attention, four times the KV of Llama-3.1-8B."""
    return resolve_model("Llama-2-7B-32K")


@pytest.fixture(scope="session")
def tinyllama() -> TransformerConfig:
    """TinyLlama-1.1B: 4 KV heads, fewer than many a number of GPUs."""
    return resolve_model("TinyLlama-1.1B")


@pytest.fixture(scope="session")
def small_llama() -> TransformerConfig:
    """Llama-3.2-1B: a small draft that speaks the tokens of Llama-3.1."""
    return resolve_model("Llama-3.2-1B")


@pytest.fixture(scope="session")
def deepseek() -> TransformerConfig:
    """DeepSeek-V3: latent attention, experts, three dense layers, fp8."""
    return resolve_model("DeepSeek-V3")


@pytest.fixture(scope="session")
def gpt_oss() -> TransformerConfig:
    """gpt-oss-20b: every other layer sees 128 tokens; experts in mxfp4."""
    return resolve_model("gpt-oss-20b")


@pytest.fixture(scope="session")
def gemma() -> TransformerConfig:
    """Gemma-3-27B: 52 of 62 layers see 1024 tokens."""
    return resolve_model("Gemma-3-27B")


@pytest.fixture(scope="session")
def a100() -> HardwareProfile:
    """Kernels calibrated on tables, the engine on the published step times."""
    return resolve_profile("a100-sxm-80gb")


@pytest.fixture(scope="session")
def h200() -> HardwareProfile:
    """Kernels calibrated on tables, the engine assumed."""
    return resolve_profile("h200-sxm")


@pytest.fixture(scope="session")
def bare(h200: HardwareProfile) -> HardwareProfile:
    """An H200 of which only the datasheet is known."""
    return replace(h200, name="bare", calibration=Calibration(), text="")
