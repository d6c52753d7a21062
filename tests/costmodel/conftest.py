"""What the tests of the cost model share: two models, two machines, and hypothesis without a clock."""

from __future__ import annotations

import hypothesis
import pytest

from costmodel.hardware import HardwareProfile, resolve_profile
from costmodel.transformer import TransformerConfig, resolve_model

hypothesis.settings.register_profile(
    "no-clock",
    deadline=None,  # a slow machine is no failure
    database=None,
    derandomize=True,
    max_examples=60,
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
def a100() -> HardwareProfile:
    """Calibrated on the published step times."""
    return resolve_profile("a100-sxm-80gb")


@pytest.fixture(scope="session")
def h200() -> HardwareProfile:
    """Not calibrated."""
    return resolve_profile("h200-sxm")
