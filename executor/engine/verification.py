"""Acceptance of draft tokens: pure functions of tokens and probabilities, no model.

Shapes: B batch, G draft tokens, T = G + 1 verified positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def count_accepted(draft_BG: Tensor, target_BT: Tensor) -> Tensor:
    """Greedy acceptance: the number of leading draft tokens that equal the target's argmax.

    Args:
        draft_BG: Draft tokens.
        target_BT: The target's argmax after the last committed token and after each draft token.

    Returns:
        accepted_B, 0 to G. The row emits target_BT[:, : accepted + 1].
    """
    if draft_BG.shape[1] == 0:
        return target_BT.new_zeros(len(target_BT))
    agrees_BG = draft_BG == target_BT[:, :-1]
    return agrees_BG.int().cumprod(dim=1).sum(dim=1)


def accept_sampled(
    draft_BG: Tensor, draft_probs_BGV: Tensor | None, target_probs_BTV: Tensor, uniform_BG: Tensor
) -> tuple[Tensor, Tensor]:
    """Rejection sampling: accept draft tokens such that the output follows the target's distribution.

    A draft token that was drawn with probability q is accepted with probability min(1, p / q). The first rejected token is
    replaced by a draw from the residual max(p - q, 0). If all are accepted, a bonus token is drawn from p.

    Args:
        draft_BG: Draft tokens.
        draft_probs_BGV: Distribution q that each was drawn from; None if they are certain.
        target_probs_BTV: The target's distribution p after the last committed token and after each draft token.
        uniform_BG: Random numbers in [0, 1).

    Returns:
        accepted_B, 0 to G, and residual_BV, the weights to draw the next token from; they need not add up to 1.

    Source:
        Leviathan et al. (arXiv 2211.17192), section 2.3.
    """
    gamma = draft_BG.shape[1]
    p_BG = target_probs_BTV[:, :gamma].gather(2, draft_BG[..., None])[..., 0]
    q_BG = torch.ones_like(p_BG) if draft_probs_BGV is None else draft_probs_BGV.gather(2, draft_BG[..., None])[..., 0]
    accepted_B = (uniform_BG * q_BG < p_BG).int().cumprod(dim=1).sum(dim=1)
    rows_B = torch.arange(len(draft_BG), device=draft_BG.device)
    p_BV = target_probs_BTV[rows_B, accepted_B]
    if gamma == 0:
        return accepted_B, p_BV
    rejected_B = accepted_B.clamp(max=gamma - 1)
    if draft_probs_BGV is None:
        q_BV = torch.zeros_like(p_BV).scatter(1, draft_BG.gather(1, rejected_B[:, None]), 1.0)
    else:
        q_BV = draft_probs_BGV[rows_B, rejected_B]
    residual_BV = (p_BV - q_BV).clamp(min=0)
    # If p and q differ by rounding only, the residual is all zero: draw from p instead.
    use_p_B1 = (accepted_B[:, None] == gamma) | (residual_BV.sum(1, keepdim=True) <= 0)
    return accepted_B, torch.where(use_p_B1, p_BV, residual_BV)


def count_emitted(tokens_BT: Tensor, accepted_B: Tensor, remaining_B: Tensor, stop_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The number of tokens that each row emits, and whether that ends the row.

    Args:
        tokens_BT: The accepted draft tokens and the target's own token after them.
        accepted_B: Accepted draft tokens. [tokens]
        remaining_B: Tokens that each row may still emit; 0 for a finished row. [tokens]
        stop_tokens: Ids that end a row; the stop token itself is emitted.

    Returns:
        emitted_B, cut after the first stop token and at the limit, and ends_B.
    """
    offered_B = torch.minimum(accepted_B + 1, remaining_B)
    if len(stop_tokens) == 0:
        return offered_B, offered_B == remaining_B
    is_stop_BT = torch.isin(tokens_BT, stop_tokens)
    steps_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    first_stop_B = torch.where(is_stop_BT, steps_T, tokens_BT.shape[1]).amin(dim=1)
    emitted_B = torch.minimum(offered_B, first_stop_B + 1)
    return emitted_B, (emitted_B == remaining_B) | (first_stop_B < offered_B)
