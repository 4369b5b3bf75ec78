"""Preference losses over the log-probabilities of a group's responses, and what is logged about them.

Dimensions: B groups, K = 1 + N responses per group with the chosen one at index 0.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class PreferenceLoss(Protocol):
    """The signature that every loss shares."""

    def __call__(self, policy_logps_BK: Tensor, reference_logps_BK: Tensor, mask_BK: Tensor, *, beta: float) -> Tensor:
        """The loss of each group, [B].

        Log-probabilities are sums over response tokens in nats; ``mask_BK`` is False where a group has fewer
        responses than K; index 0 is always present.
        """


def rewards(policy_logps_BK: Tensor, reference_logps_BK: Tensor, *, beta: float) -> Tensor:
    """Implicit rewards r(y) = beta * (log pi(y|x) - log pi_ref(y|x)), [B, K] (arXiv 2305.18290, section 4)."""
    return beta * (policy_logps_BK - reference_logps_BK)


def dpo_loss(policy_logps_BK: Tensor, reference_logps_BK: Tensor, mask_BK: Tensor, *, beta: float) -> Tensor:
    """-log sigmoid(r(y_w) - r(y_1)), [B] (arXiv 2305.18290 eq. 7). Raises ValueError unless N is 1."""
    if policy_logps_BK.shape[1] != 2 or not bool(mask_BK.all()):
        raise ValueError("dpo takes exactly one rejected response per group; use softmax_dpo for more")
    rewards_BK = rewards(policy_logps_BK, reference_logps_BK, beta=beta)
    return -logsigmoid(rewards_BK[:, 0] - rewards_BK[:, 1])


def softmax_dpo_loss(policy_logps_BK: Tensor, reference_logps_BK: Tensor, mask_BK: Tensor, *, beta: float) -> Tensor:
    """log(1 + sum_j exp(r(y_j) - r(y_w))), [B]: S-DPO (arXiv 2406.09215).

    This is the cross-entropy of the rewards with the chosen response at index 0. The published code nests
    ``-logsigmoid(-log(sum(exp(...))))``, which overflows at a margin of about 90 in float32; logsumexp does not.
    """
    rewards_BK = rewards(policy_logps_BK, reference_logps_BK, beta=beta).masked_fill(~mask_BK, -torch.inf)
    return torch.logsumexp(rewards_BK, dim=1) - rewards_BK[:, 0]


PREFERENCE_LOSSES: dict[str, PreferenceLoss] = {"dpo": dpo_loss, "softmax_dpo": softmax_dpo_loss}


def preference_metrics(
    policy_logps_BK: Tensor, reference_logps_BK: Tensor, mask_BK: Tensor, *, beta: float
) -> dict[str, Tensor]:
    """Per-group values to log, each [B]: rewards, margin, accuracies and log-probabilities.

    ``accuracy_one`` counts groups whose chosen reward beats at least one rejected reward, ``accuracy_all`` those
    where it beats all of them. Rejected values are means over the group's rejected responses.
    """
    rewards_BK = rewards(policy_logps_BK, reference_logps_BK, beta=beta)
    present_BN = mask_BK[:, 1:]
    count_B = present_BN.sum(1)
    beats_BN = (rewards_BK[:, :1] > rewards_BK[:, 1:]) & present_BN

    def mean_rejected(values_BK: Tensor) -> Tensor:
        return (values_BK[:, 1:] * present_BN).sum(1) / count_B

    rejected_B = mean_rejected(rewards_BK)
    return {
        "reward_chosen": rewards_BK[:, 0],
        "reward_rejected": rejected_B,
        "margin": rewards_BK[:, 0] - rejected_B,
        "accuracy_one": beats_BN.any(1).float(),
        "accuracy_all": (beats_BN.sum(1) == count_B).float(),
        "logp_chosen": policy_logps_BK[:, 0],
        "logp_rejected": mean_rejected(policy_logps_BK),
    }
