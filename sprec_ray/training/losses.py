"""Preference losses over the log-probabilities of a group's responses, and what is logged about them.

Dimensions: B groups, N rejected responses per group, K = 1 + N responses with the chosen one at index 0.

A group with fewer than K responses is padded. Padded places are overwritten before any arithmetic, so that whatever
stands there, inf and NaN included, reaches neither a value nor a gradient:

    mask_BK = [[True, True, True], [True, True, False]]    two rejected responses, and one
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLogps:
    """What a preference loss sees of B groups with K = 1 + N responses, the chosen one at index 0."""

    policy_BK: Tensor
    """Log-probabilities summed over response tokens, nats."""
    reference_BK: Tensor
    """The same under the reference; zeros for the reference-free losses."""
    mask_BK: Tensor
    """Bool, False where a group has fewer than K responses; index 0 is always present."""
    num_tokens_BK: Tensor
    """Response tokens (long); 0 where masked."""
    smoothing_B: Tensor
    """P(y_1 is really preferred to y_w), in [0, 0.5); read by rosepo only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """The numbers of a preference loss."""

    beta: float = 0.1
    margin: float = 0.0
    """Target margin gamma of simpo, in units of the reward."""
    sft_coef: float = 0.0
    """Weight of the chosen response's negative log-likelihood per token."""


class PreferenceLoss(Protocol):
    """The signature that every loss shares."""

    def __call__(self, groups: GroupLogps, settings: LossSettings) -> Tensor:
        """The loss of each group, [B]. Raises ValueError for a group without a rejected response."""


def preference_loss(name: str, groups: GroupLogps, settings: LossSettings) -> Tensor:
    """The named loss plus ``sft_coef`` times the chosen response's negative log-likelihood per token, [B]."""
    return PREFERENCE_LOSSES[name](groups, settings) + settings.sft_coef * chosen_nll(groups)


def chosen_nll(groups: GroupLogps) -> Tensor:
    """-log pi(y_w|x) / |y_w|, [B], in nats per token."""
    return -groups.policy_BK[:, 0] / groups.num_tokens_BK[:, 0]


def rewards(groups: GroupLogps, *, beta: float) -> Tensor:
    """Implicit rewards r(y) = beta * (log pi(y|x) - log pi_ref(y|x)), [B, K] (arXiv 2305.18290, section 4).

    Padded places have reward 0.
    """
    return beta * (_policy_logps(groups) - groups.reference_BK.masked_fill(~groups.mask_BK, 0.0))


def dpo_loss(groups: GroupLogps, settings: LossSettings) -> Tensor:
    """-log sigmoid(r(y_w) - r(y_1)), [B] (arXiv 2305.18290 eq. 7). Raises ValueError unless N is 1."""
    return -logsigmoid(_pair_margin("dpo", rewards(groups, beta=settings.beta), groups))


def softmax_dpo_loss(groups: GroupLogps, settings: LossSettings) -> Tensor:
    """log(1 + sum_j exp(r(y_j) - r(y_w))), [B]: S-DPO (arXiv 2406.09215).

    This is the cross-entropy of the rewards with the chosen response at index 0. The published code nests
    ``-logsigmoid(-log(sum(exp(...))))``, which overflows at a margin of about 90 in float32; logsumexp does not.
    """
    rewards_BK = rewards(groups, beta=settings.beta)
    margins_BK = (rewards_BK - rewards_BK[:, :1]).masked_fill(~groups.mask_BK, -torch.inf)
    return torch.logsumexp(margins_BK, dim=1)


def dmpo_loss(groups: GroupLogps, settings: LossSettings) -> Tensor:
    """-log sigmoid(r(y_w) - mean_j r(y_j)), [B]: DMPO as printed (arXiv 2405.16127 eq. 3)."""
    return -logsigmoid(_margin(rewards(groups, beta=settings.beta), groups))


def dmpo_pairs_loss(groups: GroupLogps, settings: LossSettings) -> Tensor:
    """mean_j -log sigmoid(beta * log(pi(y_w|x) / pi(y_j|x))) - log pi(y_w|x) / |y_w|, [B]: what DMPO's code trains.

    Its reference terms cancel, and its weight of the likelihood is 1; ``sft_coef`` comes on top of that.
    """
    logps_BK = _policy_logps(groups)
    pairs_BN = -logsigmoid(settings.beta * (logps_BK[:, :1] - logps_BK[:, 1:]))
    return _mean_rejected(pairs_BN, groups) + chosen_nll(groups)


def rosepo_loss(groups: GroupLogps, settings: LossSettings) -> Tensor:
    """-(1 - eps) log sigmoid(h) - eps log sigmoid(-h), h = r(y_w) - r(y_1), eps per group, [B] (arXiv 2410.12519).

    The form is inferred from the paper's abstract. Raises ValueError unless N is 1.
    """
    margin_B = _pair_margin("rosepo", rewards(groups, beta=settings.beta), groups)
    return -(1 - groups.smoothing_B) * logsigmoid(margin_B) - groups.smoothing_B * logsigmoid(-margin_B)


def ipo_loss(groups: GroupLogps, settings: LossSettings) -> Tensor:
    """(h - 1 / (2 beta))^2, h = log(pi(y_w|x) / pi_ref(y_w|x)) - log(pi(y_1|x) / pi_ref(y_1|x)), [B].

    arXiv 2310.12036 eq. 17, whose tau is beta. Log-probabilities are summed, as printed; TRL's DPOTrainer divides both
    log-ratios by their number of tokens first. Raises ValueError unless N is 1.
    """
    return (_pair_margin("ipo", rewards(groups, beta=1.0), groups) - 1 / (2 * settings.beta)) ** 2


def simpo_loss(groups: GroupLogps, settings: LossSettings) -> Tensor:
    """-log sigmoid(beta / |y_w| log pi(y_w|x) - beta / |y_1| log pi(y_1|x) - gamma), [B] (arXiv 2405.14734 eq. 6).

    Raises ValueError unless N is 1.
    """
    rewards_BK = settings.beta * _policy_logps(groups) / groups.num_tokens_BK.masked_fill(~groups.mask_BK, 1)
    return -logsigmoid(_pair_margin("simpo", rewards_BK, groups) - settings.margin)


PREFERENCE_LOSSES: dict[str, PreferenceLoss] = {
    "dpo": dpo_loss,
    "softmax_dpo": softmax_dpo_loss,
    "dmpo": dmpo_loss,
    "dmpo_pairs": dmpo_pairs_loss,
    "rosepo": rosepo_loss,
    "ipo": ipo_loss,
    "simpo": simpo_loss,
}

REFERENCE_FREE = frozenset({"simpo", "dmpo_pairs"})
"""Losses that do not read the reference."""


def preference_metrics(groups: GroupLogps, settings: LossSettings) -> dict[str, Tensor]:
    """Per-group values to log, each [B]: rewards, margin, accuracies and log-probabilities.

    ``accuracy_one`` counts groups whose chosen reward beats at least one rejected reward, ``accuracy_all`` those
    where it beats all of them. Rejected values are means over the group's rejected responses. Rewards are DPO's for
    every loss: of summed log-probabilities, and with a reference of zeros beta * log pi.
    """
    rewards_BK = rewards(groups, beta=settings.beta)
    absent_BN = ~groups.mask_BK[:, 1:]
    beats_BN = rewards_BK[:, :1] > rewards_BK[:, 1:]
    return {
        "reward_chosen": rewards_BK[:, 0],
        "reward_rejected": _mean_rejected(rewards_BK[:, 1:], groups),
        "margin": _margin(rewards_BK, groups),
        "accuracy_one": (beats_BN & ~absent_BN).any(1).float(),
        "accuracy_all": (beats_BN | absent_BN).all(1).float(),
        "logp_chosen": groups.policy_BK[:, 0],
        "logp_rejected": _mean_rejected(groups.policy_BK[:, 1:], groups),
    }


def _policy_logps(groups: GroupLogps) -> Tensor:
    """The policy's log-probabilities with 0 in padded places, [B, K]; ValueError for a group of the chosen alone."""
    alone_B = ~groups.mask_BK[:, 1:].any(1)
    if bool(alone_B.any()):
        raise ValueError(
            "a preference loss needs at least one rejected response per group; "
            f"group {int(alone_B.nonzero()[0])} has none"
        )
    return groups.policy_BK.masked_fill(~groups.mask_BK, 0.0)


def _mean_rejected(values_BN: Tensor, groups: GroupLogps) -> Tensor:
    """The mean over a group's own rejected responses, [B]."""
    present_BN = groups.mask_BK[:, 1:]
    return values_BN.masked_fill(~present_BN, 0.0).sum(1) / present_BN.sum(1)


def _margin(values_BK: Tensor, groups: GroupLogps) -> Tensor:
    """The chosen value less the mean of the rejected ones, [B]."""
    return values_BK[:, 0] - _mean_rejected(values_BK[:, 1:], groups)


def _pair_margin(name: str, values_BK: Tensor, groups: GroupLogps) -> Tensor:
    """The chosen value less the one rejected value, [B]; ValueError for a group with more of them."""
    if bool((groups.mask_BK[:, 1:].sum(1) != 1).any()):
        raise ValueError(f"{name} takes exactly one rejected response per group; use softmax_dpo for more")
    return _margin(values_BK, groups)
