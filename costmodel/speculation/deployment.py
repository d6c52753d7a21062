"""A model deployed on GPUs, and the time of its passes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ..base.errors import bad
from ..hardware.profile import HardwareProfile
from ..models.transformer import MODEL_TITLES, TransformerConfig, model_kind
from ..passes.forward import Array, forward_cost
from ..passes.prefill import ttft_s
from ..passes.roofline import StepTime, VerifyKernel, selection_s, step_time
from .drafts import Draft, select_kernels, selection_work

if TYPE_CHECKING:
    from ..engines.profile import EngineProfile  # slow to import, and seldom needed

# How much wider intervals get where a calibration has nothing of the kind. Measured by benchmarks/engine_leftout.py on a DGX Spark
# under llama.cpp: with the kind left out of the fit, the 90th percentile of the errors of steps grew from 7.8 % to 11.2 % (dense)
# and to 16.2 % (experts); that of speedups of SGLang from 25 % to 59 % (recurrent). The others are estimated.
UNLIKE_ERRORS = {"dense": 0.04, "experts": 0.09, "recurrent": 0.35, "types": 0.06, "parallel": 0.03}


@dataclass(frozen=True)
class Deployment:
    """A model deployed on GPUs.

    Attributes:
        target: The served model.
        hardware: Profile of one GPU.
        num_gpus: Total number of GPUs; the batch is split over `num_gpus / tensor_parallel` replicas.
        tensor_parallel: GPUs per replica of the target.
        verify_kernel: How the attention of verification reads the KV cache.
        engine: The serving engine; None for the one that the profile was calibrated with. `hardware` is then the machine as
            this engine uses it.
        task: What is generated, for acceptance that depends on it; None for a mean over tasks.

    Raises:
        InputError: `tensor_parallel` does not divide the number of GPUs, or the heads of the target.
    """

    target: TransformerConfig
    hardware: HardwareProfile
    num_gpus: int = 1
    tensor_parallel: int = 1
    verify_kernel: VerifyKernel = "shared_kv_splitkv"
    engine: EngineProfile | None = None
    task: str | None = None

    def __post_init__(self) -> None:
        expected = ""
        uneven = self.engine is not None and self.engine.uneven_split
        if self.num_gpus < 1 or self.tensor_parallel < 1 or self.num_gpus % self.tensor_parallel:
            expected = f"a divisor of the number of GPUs ({self.num_gpus})"
        elif not uneven and self.target.num_heads % self.tensor_parallel:
            expected = f"a divisor of the {self.target.num_heads} query heads of {self.target.name}"
        elif not uneven and self._splits_a_kv_head:
            expected = f"a divisor or a multiple of the {self.target.num_kv_heads} KV heads of {self.target.name}"
        if expected:
            raise bad("tensor_parallel", "", expected, self.tensor_parallel)

    @property
    def _splits_a_kv_head(self) -> bool:
        heads = self.target.num_kv_heads
        return bool(self.target.latent is None and heads % self.tensor_parallel and self.tensor_parallel % heads)

    @property
    def unlike_calibration(self) -> dict[str, float]:
        """What is unlike the passes that the profile was calibrated on, in words, and how much wider it makes intervals. [ratio]"""
        fit = self.hardware.calibration.fit_of("engine")
        if self.engine is not None or fit is None or not fit.model_kinds:
            return {}
        found, kind, target = {}, model_kind(self.target), self.target
        if kind not in fit.model_kinds:
            found[MODEL_TITLES[kind]] = UNLIKE_ERRORS[kind]
        wide = {dtype for dtype in (target.linear_dtype, target.expert_dtype) if dtype is not None} or {target.dtype}
        if other := sorted(wide - set(fit.weight_dtypes)):
            found[f"weights in {' and '.join(other)}"] = UNLIKE_ERRORS["types"]
        if self.tensor_parallel not in fit.parallel:
            gpus = f"{self.tensor_parallel} GPU{'s' if self.tensor_parallel > 1 else ''}"
            found[f"{gpus} a replica"] = UNLIKE_ERRORS["parallel"]
        return found

    @property
    def provenance(self) -> str:
        """One sentence on where the step times come from, and what here is unlike it."""
        if self.engine is not None:
            return f"{self.hardware.name} under {self.engine.title}: {self.engine.provenance(self.hardware, self.target)}"
        text = f"{self.hardware.name}: {self.hardware.provenance}"
        unlike = self.unlike_calibration
        return f"{text}; none of it is of {' or '.join(unlike)}: intervals are wider" if unlike else text

    @property
    def replicas(self) -> int:
        """Copies of the target, among which the batch is split."""
        return self.num_gpus // self.tensor_parallel

    def pass_time(
        self,
        batch_size: ArrayLike,
        query_len: ArrayLike,
        context_len: ArrayLike,
        *,
        kv_budget: ArrayLike = np.inf,
        logits_len: ArrayLike | None = None,
        model: TransformerConfig | None = None,
        gpus: int | None = None,
        cold: bool = True,
        layers_only: bool = False,
    ) -> StepTime:
        """Time of one forward pass on one replica; array arguments broadcast.

        Args:
            batch_size: Sequences of the replica.
            query_len: New tokens per sequence. [tokens]
            context_len: Tokens already in the KV cache, per sequence. [tokens]
            kv_budget: Maximum number of cached entries read, per sequence. [tokens]
            logits_len: Positions with logits; None for all new tokens. [tokens]
            model: The model; None for the target.
            gpus: GPUs that share the pass; None for `tensor_parallel`.
            cold: As in `step_time`.
            layers_only: Leave out LM head, sampling and what the engine adds to a step, as timers of engines do.
        """
        model, gpus = model or self.target, gpus or self.tensor_parallel
        cost = forward_cost(
            model,
            batch_size=batch_size,
            query_len=query_len,
            context_len=context_len,
            kv_budget=kv_budget,
            logits_len=logits_len,
            tensor_parallel=gpus,
            head_sharded=self.hardware.calibration.engine.head_sharded,
        )
        step = step_time(
            cost.without_head() if layers_only else cost,
            self.hardware,
            model.dtype,
            tensor_parallel=gpus,
            verify_kernel=self.verify_kernel,
            cold=cold,
        )
        if not layers_only:
            return step
        return replace(step, overhead_s=step.overhead_s - self.hardware.calibration.engine.step_overhead_s)

    def select_s(self, draft: Draft, batch_size: Array, context_len: Array, network: TransformerConfig, gpus: int) -> Array:
        """Time of selecting the KV entries of one draft step. [s]

        Args:
            draft: The draft.
            batch_size: Sequences of the replica.
            context_len: Tokens in the KV cache, per sequence. [tokens]
            network: The network that drafts.
            gpus: GPUs that share it.
        """
        work = selection_work(draft.kv_policy, network, batch_size=batch_size, context_len=context_len, tensor_parallel=gpus)
        return selection_s(work, self.hardware, network.dtype, select_kernels(draft.kv_policy) * network.num_layers)

    def copy_s(self, copied_bytes: Array) -> Array:
        """Time of copying KV entries that a draft reads; 0 if the profile does not know it. [s]"""
        bytes_per_s = self.hardware.peak.memory_bandwidth_bytes_per_s * self.hardware.calibration.engine.copy_efficiency
        return copied_bytes / bytes_per_s if bytes_per_s else 0 * copied_bytes

    def ttft_s(self, prompt_len: ArrayLike, batch_size: ArrayLike = 1) -> Array:
        """Time to first token (prefill) of prompts that arrive together. [s]

        Args:
            prompt_len: Length of each prompt. [tokens]
            batch_size: Prompts over all replicas.
        """

        def pass_s(query_len: ArrayLike, context_len: ArrayLike) -> Array:
            return self.pass_time(1, query_len, context_len, logits_len=1).total_s

        return ttft_s(pass_s, prompt_len, np.ceil(np.asarray(batch_size) / self.replicas))
