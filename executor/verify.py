"""Which draft tokens stay: pure functions of tokens, no model.

Shapes: B batch, G draft tokens, T = G + 1 positions that the target answered.
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
    agrees_BG = draft_BG == target_BT[:, :-1]
    return agrees_BG.int().cumprod(dim=1).sum(dim=1)


def count_emitted(target_BT: Tensor, accepted_B: Tensor, remaining_B: Tensor, stop_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """How many tokens each row emits, cut after the first stop token and at its limit, and whether that ends the row.

    Args:
        target_BT: The target's choices.
        accepted_B: Accepted draft tokens.
        remaining_B: Tokens each row may still emit; 0 for a finished row.
        stop_tokens: Ids that end a row; the stop token itself is emitted.
    """
    offered_B = torch.minimum(accepted_B + 1, remaining_B)
    stops_BT = torch.isin(target_BT, stop_tokens)
    places_T = torch.arange(target_BT.shape[1], device=target_BT.device)
    first_stop_B = torch.where(stops_BT, places_T, target_BT.shape[1]).amin(dim=1)
    emitted_B = torch.minimum(offered_B, first_stop_B + 1)
    return emitted_B, (emitted_B == remaining_B) | (first_stop_B < offered_B)
