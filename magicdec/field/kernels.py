"""Predict single kernels: attention of one layer, one matrix product."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.hardware.profile import EngineLaw
from magicdec.costmodel.layers.weights import Matrix
from magicdec.costmodel.passes.attention_work import NO_WORK
from magicdec.costmodel.passes.forward import Cost, Products, forward_cost
from magicdec.costmodel.passes.roofline import step_time
from magicdec.costmodel.speculation.deployment import Deployment

from .columns import Cells, cell, whole

MATRICES = {"qkv_proj": "qkv", "o_proj": "o", "gate_up_proj": "gate_up", "down_proj": "down", "lm_head": "head"}


def kernel_time(row: Cells, deployment: Deployment) -> float:
    """Time of the kernel that a row is about. [s]

    Raises:
        InputError: It is a kernel that has no law of its own.
    """
    layer = row.get("layer", "")
    if layer:
        if layer not in MATRICES:
            raise bad("layer", "", f"one of {', '.join(MATRICES)}: others are part of the overhead of a layer", layer)
        return _product_s(MATRICES[layer], whole({"query_len": row.get("tokens", "")}, "query_len") or 1, deployment)
    if not cell(row, "context"):
        raise bad("kv_len", "", "a context in this column", "nothing")
    cost = forward_cost(
        deployment.target,
        batch_size=whole(row, "batch") or 1,
        query_len=whole(row, "query_len") or 1,
        context_len=whole(row, "context") or 0,
        tensor_parallel=deployment.tensor_parallel,
    )
    first, layers = cost.attentions[0], cost.attentions[0].layers
    one = replace(first, layers=1, flop=first.flop / layers, bytes=first.bytes / layers, query_bytes=first.query_bytes / layers)
    return _alone_s(replace(_nothing(cost), attentions=(one,)), deployment)


def _product_s(name: str, rows: int, deployment: Deployment) -> float:
    found = [matrix for matrix in deployment.target.matrices(deployment.tensor_parallel) if matrix.name == name]
    if not found:
        raise bad("layer", "", f"a matrix of {deployment.target.name}", name)
    matrix: Matrix = replace(found[0], layers=1)
    cost = forward_cost(deployment.target, batch_size=1, query_len=1, context_len=0)
    product = Products(matrix, np.asarray(float(rows)), np.ones(()), deployment.target.bytes_per_element)
    return _alone_s(replace(_nothing(cost), products=(product,)), deployment)


def _nothing(cost: Cost) -> Cost:
    return replace(
        cost,
        products=(),
        attentions=(),
        elementwise=NO_WORK,
        logits_bytes=np.zeros(()),
        num_allreduces=0,
        num_layers=0.0,
        num_expert_layers=0,
        state=NO_WORK,
        num_state_layers=0,
    )


def _alone_s(cost: Cost, deployment: Deployment) -> float:
    known = deployment.hardware.calibration
    bare = replace(deployment.hardware, calibration=replace(known, engine=EngineLaw(layer_overhead_s=0.0)))
    step = step_time(cost, bare, deployment.target.dtype, verify_kernel=deployment.verify_kernel)
    return float(step.total_s)
