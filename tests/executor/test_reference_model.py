"""The shipped model works at the context lengths it is used with, and matches its files."""

import json

import pytest
from tokenizers import Tokenizer

from magicdec.costmodel.plans.strategy import NO_SPECULATION
from magicdec.costmodel.speculation.acceptance import load_checkpoint_curves
from magicdec.executor.engine.request import Request
from magicdec.executor.engine.sampling import Sampling
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.generate import run
from magicdec.executor.model.checkpoint import load_model
from magicdec.executor.model.tokenizer import load_tokenizer
from magicdec.executor.model.transformer import Transformer
from magicdec.executor.reference_model import reference_model_dir
from magicdec.executor.reference_model.train import evaluate

FOLDER = reference_model_dir()
FACTS = json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model() -> Transformer:
    return load_model(FOLDER, dtype="float32")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(FOLDER)


def test_the_checkpoint_is_small_and_states_its_quality(model: Transformer) -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 12e6
    assert FACTS["params"] == model.config.params
    bits = FACTS["held_out_bits_per_byte"]
    assert bits["near_8192"] <= bits["near_1024"]
    assert bits["all"] < 1.2


@pytest.mark.slow
def test_text_near_position_8192_is_predicted_as_well_as_near_1024(model: Transformer, tokenizer: Tokenizer) -> None:
    bits = evaluate(model, tokenizer, windows=3)
    assert bits["near_8192"] <= bits["near_1024"]
    assert bits["all"] < 1.2


def loops(tokens: list[int], most: int = 16, last: int = 48) -> bool:
    """Whether the end repeats itself with a period of at most `most` tokens."""
    end = tokens[-last:]
    return any(end[period:] == end[:-period] for period in range(1, most + 1))


def test_a_loop_is_detected() -> None:
    assert loops([*range(60), *[1, 2, 3] * 20])
    assert not loops(list(range(100)))


def test_sampled_text_rarely_falls_into_a_loop(model: Transformer, tokenizer: Tokenizer) -> None:
    prompts = ("The ", "import os\n\n\ndef ", 'class Reader:\n    """Reads ')
    requests = [Request(f"{prompt}/{copy}", tokenizer.encode(prompt).ids) for prompt in prompts for copy in range(3)]
    outputs = run(model, None, requests, NO_SPECULATION, GenerationSettings(100, sampling=Sampling(0.8))).outputs
    assert [len(output) for output in outputs] == [100] * 9
    assert sum(map(loops, outputs)) <= 1


def test_its_acceptance_was_measured_and_rises_with_the_budget() -> None:
    (curve,) = load_checkpoint_curves(FOLDER)
    rates = {budget: rate for budget, context, rate in curve.points if context == 8192}
    assert rates[1024] > rates[256] > rates[64]
    assert all(0.5 < rate < 1 for rate in rates.values())
