"""The shipped model works at the lengths it is shown at, and is what its files say."""

import json
import math

import pytest
import torch
from tokenizers import Tokenizer

from costmodel.acceptance import curves_beside
from executor.reference_model import reference_model_dir
from executor.reference_model.corpus import held_out_documents
from executor.reference_model.train import loss_per_token
from executor.tokenizer import load_tokenizer
from executor.transformer import Transformer
from executor.weights import load_model

FOLDER = reference_model_dir()
FACTS = json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model() -> Transformer:
    return load_model(FOLDER, dtype="float32")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(FOLDER)


@pytest.fixture(scope="module")
def tokens(tokenizer: Tokenizer) -> list[int]:
    """Real text the model never saw, long documents first."""
    texts = sorted((document.text for document in held_out_documents()), key=len, reverse=True)
    return [token for encoding in tokenizer.encode_batch(texts[:12]) for token in encoding.ids]


def test_the_checkpoint_is_small_and_states_its_quality(model: Transformer) -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 12e6
    assert FACTS["params"] == model.config.params
    bits = FACTS["held_out_bits_per_byte"]
    assert bits["near_8192"] <= bits["near_1024"]
    assert bits["all"] < 1.2


def test_text_near_position_8192_is_predicted_no_worse_than_from_a_short_context(
    model: Transformer, tokenizer: Tokenizer, tokens: list[int]
) -> None:
    """The same thousand tokens, once at positions near 8192 and once near 1024, which isolates position from text."""
    window = torch.tensor([tokens[: 8192 + 512]])
    with torch.inference_mode():
        far = loss_per_token(model, window, low_precision=False)[0, -1024:].mean().item()
        near = loss_per_token(model, window[:, -1024 - 512 :], low_precision=False)[0, -1024:].mean().item()
    assert far <= near
    per_byte = far * 1024 / math.log(2) / len(tokenizer.decode(window[0, -1024:].tolist()).encode())
    assert per_byte < 2.0


@pytest.mark.parametrize("prompt", ["The ", "import os\n\n\ndef ", 'class Reader:\n    """Reads '])
def test_sampled_text_does_not_fall_into_a_loop(model: Transformer, tokenizer: Tokenizer, prompt: str) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = tokenizer.encode(prompt).ids
    with torch.inference_mode():
        for _ in range(100):
            input_BT = torch.tensor([ids])
            logits_V = model.logits(model(input_BT, torch.arange(len(ids))[None])[:, -1])[0]
            ids.append(int(torch.multinomial((logits_V / 0.8).softmax(-1), 1, generator=generator)))
    new = ids[-100:]
    windows = [tuple(new[i : i + 8]) for i in range(len(new) - 7)]
    assert len(set(windows)) > 0.9 * len(windows), tokenizer.decode(new)


def test_its_acceptance_was_measured_and_rises_with_the_budget() -> None:
    (curve,) = curves_beside(FOLDER)
    rates = {budget: rate for budget, context, rate in curve.points if context == 8192}
    assert rates[1024] > rates[256] > rates[64]
    assert all(0.5 < rate < 1 for rate in rates.values())
