"""Layers without memory: a dense MLP, or a mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass

from .weights import Role, Weight


def _pair(
    name: str, width: int, d_model: int, *, gated: bool, role: Role = "linear", experts: int = 1, used: int = 1
) -> tuple[Weight, ...]:
    up, outputs = (f"{name}gate_up", 2 * width) if gated else (f"{name}up", width)
    return (
        Weight(up, outputs, d_model, "mlp", experts=experts, used=used, role=role),
        Weight(f"{name}down", d_model, width, "mlp", "inputs", experts=experts, used=used, role=role),
    )


@dataclass(frozen=True, repr=False)
class DenseMlp:
    """A dense MLP.

    Attributes:
        d_ff: Hidden width.
        gated: Whether the up-projection has a gate of the same width.
        bias: Whether both projections have biases.
    """

    d_ff: int
    gated: bool = True
    bias: bool = False

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        """Matrices of one layer."""
        return _pair("", self.d_ff, d_model, gated=self.gated)

    def vector_params(self, d_model: int) -> int:
        """Parameters of biases of one layer."""
        return (2 if self.gated else 1) * self.d_ff + d_model if self.bias else 0

    def idle_vector_params(self, d_model: int) -> float:
        """Parameters of biases that a token does not use."""
        return 0.0

    @property
    def widest(self) -> int:
        """Elements of the widest activation of a token."""
        return (3 if self.gated else 2) * self.d_ff

    @property
    def title(self) -> str:
        """Name of the kind, for people."""
        return f"MLP of {self.d_ff:,}"


@dataclass(frozen=True, repr=False)
class ExpertMlp:
    """A mixture of experts. How a router chooses, by groups or not, does not change what is counted.

    Attributes:
        num_experts: Routed experts.
        experts_per_token: Routed experts that process each token.
        d_ff: Hidden width of one expert.
        d_ff_shared: Total hidden width of the shared experts, which process every token; 0 for none.
        gated: Whether experts have a gate.
        bias: Whether router and experts have biases.
        router_vectors: Further parameters of the router.
        shared_gate: Whether a scalar gate weighs the shared experts.
        latent: Width in which the routed experts compute, between two projections; None for the model's own.
        d_ff_dense: Hidden width of a dense MLP beside the experts; 0 for none.
    """

    num_experts: int
    experts_per_token: int
    d_ff: int
    d_ff_shared: int = 0
    gated: bool = True
    bias: bool = False
    router_vectors: int = 0
    shared_gate: bool = False
    latent: int | None = None
    d_ff_dense: int = 0

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        """Matrices of one layer."""
        inner = self.latent or d_model
        found = [Weight("router", self.num_experts, d_model, "mlp", "none", role="router")]
        if self.d_ff_dense:
            found += _pair("", self.d_ff_dense, d_model, gated=self.gated)
        if self.d_ff_shared:
            found += _pair("shared_", self.d_ff_shared, d_model, gated=self.gated)
        if self.shared_gate:
            found.append(Weight("shared_router", 1, d_model, "mlp", "none", role="router"))
        if self.latent is not None:
            found += [
                Weight("latent_down", self.latent, d_model, "mlp", "none"),
                Weight("latent_up", d_model, self.latent, "mlp", "none"),
            ]
        experts = _pair(
            "expert_", self.d_ff, inner, gated=self.gated, role="expert", experts=self.num_experts, used=self.experts_per_token
        )
        return (*found, *experts)

    def vector_params(self, d_model: int) -> int:
        """Parameters of biases of one layer."""
        per_expert = 1 + (2 if self.gated else 1) * self.d_ff + d_model
        return self.router_vectors + (self.num_experts * per_expert if self.bias else 0)

    def idle_vector_params(self, d_model: int) -> float:
        """Parameters of biases that a token does not use."""
        idle = self.num_experts - self.experts_per_token
        return idle * ((2 if self.gated else 1) * self.d_ff + d_model) if self.bias else 0.0

    @property
    def widest(self) -> int:
        """Elements of the widest activation of a token."""
        return (3 if self.gated else 2) * max(self.d_ff, self.d_ff_shared, self.d_ff_dense)

    @property
    def title(self) -> str:
        """Name of the kind, for people."""
        shared = f", shared {self.d_ff_shared:,}" if self.d_ff_shared else ""
        dense = f", dense {self.d_ff_dense:,}" if self.d_ff_dense else ""
        latent = f", in {self.latent:,} dimensions" if self.latent else ""
        return f"{self.experts_per_token} of {self.num_experts} experts of {self.d_ff:,}{shared}{dense}{latent}"


MlpKind = DenseMlp | ExpertMlp
