"""What a comparison with autoregressive decoding reports when the two differ."""

import pytest

from magicdec.costmodel.plans.strategy import Strategy
from magicdec.executor.engine.request import Request
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.generate import make_batch
from magicdec.executor.measuring.comparison import Comparison, compare
from magicdec.executor.model.checkpoint import load_model
from magicdec.executor.model.transformer import Transformer
from magicdec.executor.reference_model import reference_model_dir
from magicdec.running.execution import find_differences

REQUESTS = [Request("a", list(range(40, 60))), Request("b", list(range(300, 330)))]


@pytest.fixture(scope="module")
def model() -> Transformer:
    return load_model(reference_model_dir(), dtype="float32")


@pytest.fixture(scope="module")
def result(model: Transformer) -> Comparison:
    strategy = Strategy("self", "streaming_llm", 8, 2)
    batch = make_batch(model, REQUESTS, strategy, GenerationSettings(6))
    batch.prefill()
    return compare(batch, None, strategy)


def test_equal_outputs_have_nofind_differences(model: Transformer, result: Comparison) -> None:
    assert result.autoregressive.outputs == result.log.outputs
    assert find_differences(model, REQUESTS, result.log.outputs, result.autoregressive.outputs) == []


def test_a_wrong_token_is_named_with_its_log_probability_gap(model: Transformer, result: Comparison) -> None:
    wrong = [list(row) for row in result.log.outputs]
    wrong[1][3] = (wrong[1][3] + 1) % model.config.vocab_size
    (difference,) = find_differences(model, REQUESTS, wrong, result.autoregressive.outputs)
    assert "prompt b differs from autoregressive decoding at new token 3" in str(difference)
    assert not difference.near_tie


def test_a_missing_token_is_no_near_tie(model: Transformer, result: Comparison) -> None:
    shorter = [result.log.outputs[0][:-1], result.log.outputs[1]]
    (difference,) = find_differences(model, REQUESTS, shorter, result.autoregressive.outputs)
    assert not difference.near_tie
