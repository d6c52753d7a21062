"""A model on a machine, resolved from their names."""

from __future__ import annotations

from dataclasses import dataclass, replace

from magicdec.costmodel.base.errors import InputError, bad
from magicdec.costmodel.passes.roofline import VERIFY_KERNELS
from magicdec.costmodel.plans.plan import PlannedModel
from magicdec.costmodel.plans.strategy import COMPRESSED_DTYPES, KV_DTYPES
from magicdec.costmodel.speculation.deployment import Deployment

from .checks import one_of, text, whole_number
from .machines import check_layer_split
from .names import Model, executed, find_hardware, find_model


@dataclass(frozen=True)
class Scenario:
    """A model on a machine.

    Attributes:
        model: The target and its acceptance curves.
        deployment: The target, in the types it runs in, on its GPUs.
    """

    model: Model
    deployment: Deployment

    def __str__(self) -> str:
        where = self.deployment
        gpus = f"{where.num_gpus} x " if where.num_gpus > 1 else ""
        return f"{where.target.name} on {gpus}{where.hardware.name}"


def with_types(scenario: Scenario, planned: PlannedModel) -> Scenario:
    """The scenario with the types that a plan gives its target."""
    target = scenario.deployment.target.compressed(weight_dtype=planned.weight_dtype, kv_dtype=planned.kv_dtype)
    return replace(scenario, deployment=replace(scenario.deployment, target=target))


def resolve_scenario(
    model: str,
    hardware: str,
    *,
    num_gpus: int = 1,
    tensor_parallel: int | None = None,
    verify_kernel: str = VERIFY_KERNELS[0],
    weight_dtype: str | None = None,
    kv_dtype: str | None = None,
) -> Scenario:
    """Resolve the names of a model and a machine.

    Args:
        model: `reference`, a built-in name, a config.json or a checkpoint directory.
        hardware: A GPU's name, `cpu`, `local`, a profile file, or several of them separated by commas.
        num_gpus: GPUs in all.
        tensor_parallel: GPUs that share one replica of the target; None for all.
        verify_kernel: How verification attention reads the KV cache, one of `VERIFY_KERNELS`.
        weight_dtype, kv_dtype: Narrower types of the target's matrices and KV cache, of `COMPRESSED_DTYPES` and `KV_DTYPES`.

    Raises:
        InputError: A name is unknown, or the values do not fit together.
    """
    found, profile = find_model(model), find_hardware(hardware)
    num_gpus = whole_number("num_gpus", num_gpus)
    check_layer_split(profile, num_gpus)
    shared_by = num_gpus if tensor_parallel is None else whole_number("tensor_parallel", tensor_parallel)
    target = executed(found.config, profile, shared_by).compressed(
        weight_dtype=one_of("weight_dtype", weight_dtype, COMPRESSED_DTYPES),
        kv_dtype=one_of("kv_dtype", kv_dtype, KV_DTYPES),
    )
    kernel = one_of("verify_kernel", text("verify_kernel", verify_kernel), VERIFY_KERNELS)
    assert kernel is not None
    try:
        return Scenario(found, Deployment(target, profile, num_gpus, shared_by, kernel))
    except InputError as error:
        problem = error.problems[0]
        if tensor_parallel is not None or problem.where != "tensor_parallel":
            raise
        expected = f"{problem.expected}, as one replica takes all GPUs unless `tensor_parallel` is given"
        raise bad("num_gpus", "", expected, num_gpus) from None
