"""What a comparison with plain decoding reports when the two differ."""

from dataclasses import replace

import pytest

from magicdec.costmodel.plans.strategy import Strategy
from magicdec.executor.engine.batch import Prompt
from magicdec.executor.generate import Result, run_batch
from magicdec.executor.model.checkpoint import load_model
from magicdec.executor.model.transformer import Transformer
from magicdec.executor.reference_model import reference_model_dir
from magicdec.running import _differences


@pytest.fixture(scope="module")
def model() -> Transformer:
    return load_model(reference_model_dir(), dtype="float32")


@pytest.fixture(scope="module")
def result(model: Transformer) -> Result:
    return run_batch(model, None, PROMPTS, Strategy("self", "streaming_llm", 8, 2), max_new_tokens=6, compare=True)


PROMPTS = [Prompt("a", list(range(40, 60))), Prompt("b", list(range(300, 330)))]


def test_equal_outputs_have_no_differences(model: Transformer, result: Result) -> None:
    assert result.plain_outputs == result.outputs
    assert _differences(model, PROMPTS, result) == []


def test_a_wrong_token_is_named_with_what_the_model_thinks_of_it(model: Transformer, result: Result) -> None:
    wrong = [list(row) for row in result.outputs]
    wrong[1][3] = (wrong[1][3] + 1) % model.config.vocab_size
    (difference,) = _differences(model, PROMPTS, replace(result, outputs=wrong))
    assert "prompt b differs from plain decoding at new token 3" in difference.words
    assert not difference.near_tie


def test_a_missing_token_is_no_near_tie(model: Transformer, result: Result) -> None:
    (difference,) = _differences(model, PROMPTS, replace(result, outputs=[result.outputs[0][:-1], result.outputs[1]]))
    assert not difference.near_tie
