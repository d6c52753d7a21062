"""FLOP of linear layers against those that torch counts when small models of transformers run."""

from __future__ import annotations

from typing import Any

import pytest

from magicdec.costmodel.models.hf_config import parse_hf_config
from magicdec.costmodel.passes.forward import forward_cost

SMALL = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXTURE = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
}
STATES = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "gemma3_text": {"sliding_window": 8},
    "qwen3_moe": MIXTURE,
    "qwen3_5_text": STATES,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_layers_multiply_as_often_as_torch_counts(family: str) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    config = transformers.AutoConfig.for_model(family, **SMALL, **FAMILIES[family])
    config._attn_implementation, config._experts_implementation = "sdpa", "batched_mm"
    batch, tokens = 3, 5
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(batch, tokens, dtype=torch.long), use_cache=False)
    counted = {str(op): flop for op, flop in counter.get_flop_counts()["Global"].items()}
    linear = sum(flop for op, flop in counted.items() if op in ("aten.mm", "aten.addmm"))
    ours = forward_cost(
        parse_hf_config(config.to_dict(), where="config.json", name=family), batch_size=batch, query_len=tokens, context_len=0
    )
    experts = [products for products in ours.products if products.matrix.experts > 1]
    dense = sum(float(products.flop) for products in ours.products if products.matrix.experts == 1)
    assert linear == dense > 0
    if experts:
        pairs = batch * tokens * 2
        expected = config.num_hidden_layers * pairs * 2 * 3 * config.hidden_size * config.moe_intermediate_size
        assert sum(float(products.flop) for products in experts) == pytest.approx(expected, rel=1e-12)
        assert counted["aten.bmm"] == expected
