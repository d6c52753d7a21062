"""Which draft tokens stay: pure functions of tokens, no model.

Shapes: B batch, G draft tokens, T = G + 1 positions that the target answered, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def count_accepted(draft_BG: Tensor, target_BT: Tensor) -> Tensor:
    """Greedy acceptance: how many leading draft tokens are what the target itself would have chosen.

    Args:
        draft_BG: Drafted tokens.
        target_BT: The target's choice after the last known token and after each draft token.

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
    """Rejection sampling: how many draft tokens stay, and what to draw the next token from so that the target's law is kept.

    A draft token drawn with probability q stays with probability min(1, p / q); in the place of the first that does not,
    a token is drawn from what p has more than q; after the last, from p itself.

    Args:
        draft_BG: Drafted tokens.
        draft_probs_BGV: The distribution each was drawn from; None where it was the only possible one.
        target_probs_BTV: The target's distribution after the last known token and after each draft token.
        uniform_BG: Numbers in [0, 1).

    Returns:
        accepted_B, 0 to G, and the weights remainder_BV, which need not add up to 1.

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
    refused_B = accepted_B.clamp(max=gamma - 1)
    if draft_probs_BGV is None:
        q_BV = torch.zeros_like(p_BV).scatter(1, draft_BG.gather(1, refused_B[:, None]), 1.0)
    else:
        q_BV = draft_probs_BGV[rows_B, refused_B]
    rest_BV = (p_BV - q_BV).clamp(min=0)
    # Where p and q differ by rounding alone, nothing is left of p: then p itself is as good.
    keep_p_B1 = (accepted_B[:, None] == gamma) | (rest_BV.sum(1, keepdim=True) <= 0)
    return accepted_B, torch.where(keep_p_B1, p_BV, rest_BV)


def count_emitted(target_BT: Tensor, accepted_B: Tensor, remaining_B: Tensor, stop_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """How many tokens each row emits, cut after the first stop token and at its limit, and whether that ends the row.

    Args:
        target_BT: The accepted draft tokens and the target's own choice after them.
        accepted_B: Accepted draft tokens.
        remaining_B: Tokens each row may still emit; 0 for a finished row.
        stop_tokens: Ids that end a row; the stop token itself is emitted.
    """
    offered_B = torch.minimum(accepted_B + 1, remaining_B)
    if len(stop_tokens) == 0:
        return offered_B, offered_B == remaining_B
    stops_BT = torch.isin(target_BT, stop_tokens)
    places_T = torch.arange(target_BT.shape[1], device=target_BT.device)
    first_stop_B = torch.where(stops_BT, places_T, target_BT.shape[1]).amin(dim=1)
    emitted_B = torch.minimum(offered_B, first_stop_B + 1)
    return emitted_B, (emitted_B == remaining_B) | (first_stop_B < offered_B)
