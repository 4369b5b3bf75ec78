from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid
from trl.trainer.dpo_trainer import DPOTrainer

from sprec_ray.config.load import load_config
from sprec_ray.config.methods import PAIRWISE, PreferenceConfig
from sprec_ray.config.run import ConfigError
from sprec_ray.training.losses import (
    PREFERENCE_LOSSES,
    REFERENCE_FREE,
    GroupLogps,
    LossSettings,
    chosen_nll,
    dmpo_loss,
    dmpo_pairs_loss,
    dpo_loss,
    ipo_loss,
    preference_loss,
    preference_metrics,
    rewards,
    rosepo_loss,
    simpo_loss,
    softmax_dpo_loss,
)

PROBABILITIES = {
    "uniform": [1 / 6] * 6,
    "skewed": [0.05, 0.1, 0.3, 0.1, 0.25, 0.2],
    "popular": [0.4, 0.25, 0.15, 0.1, 0.06, 0.04],
    "reference": [0.2, 0.3, 0.1, 0.15, 0.05, 0.2],
}
MANY = sorted(PREFERENCE_LOSSES.keys() - PAIRWISE)
"""Losses that take any number of rejected responses."""
GENERAL = LossSettings(beta=0.4, margin=0.3, sft_coef=0.6)
"""Settings under which no term vanishes."""


def make_groups(
    policy_BK: Tensor,
    reference_BK: Tensor | None = None,
    *,
    mask_BK: Tensor | None = None,
    num_tokens_BK: Tensor | None = None,
    smoothing: float | Tensor = 0.0,
) -> GroupLogps:
    """Groups with a reference of zeros, nothing masked, one-token responses and no smoothing, unless given."""
    mask_BK = torch.ones(policy_BK.shape, dtype=torch.bool) if mask_BK is None else mask_BK
    return GroupLogps(
        policy_BK=policy_BK,
        reference_BK=torch.zeros_like(policy_BK) if reference_BK is None else reference_BK,
        mask_BK=mask_BK,
        num_tokens_BK=mask_BK.long() if num_tokens_BK is None else num_tokens_BK,
        smoothing_B=torch.as_tensor(smoothing, dtype=policy_BK.dtype).expand(len(policy_BK)),
    )


def drawn_groups(counts: list[int], *, seed: int, width: int | None = None, padding: float = 0.0) -> GroupLogps:
    """Random groups of ``counts`` responses, padded to ``width``; ``padding`` stands for log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(counts), width or max(counts))
    mask = torch.arange(shape[1])[None] < torch.tensor(counts)[:, None]
    policy, reference = -20 * torch.rand(2, *shape, generator=generator, dtype=torch.float64)
    return make_groups(
        policy.masked_fill(~mask, padding),
        reference.masked_fill(~mask, padding),
        mask_BK=mask,
        num_tokens_BK=torch.randint(1, 9, shape, generator=generator).masked_fill(~mask, 0),
        smoothing=torch.rand(shape[0], generator=generator, dtype=torch.float64) / 2,
    )


def padded_groups(name: str, *, seed: int, padding: float = 0.0) -> GroupLogps:
    """Random groups that the named loss takes, every one with padded places."""
    return drawn_groups([2, 2, 2] if name in PAIRWISE else [2, 4, 3], seed=seed, width=5, padding=padding)


def group_alone(groups: GroupLogps, row: int) -> GroupLogps:
    """One group without its padding."""
    present = groups.mask_BK[row]
    return GroupLogps(
        policy_BK=groups.policy_BK[row, present][None],
        reference_BK=groups.reference_BK[row, present][None],
        mask_BK=present[present][None],
        num_tokens_BK=groups.num_tokens_BK[row, present][None],
        smoothing_B=groups.smoothing_B[row, None],
    )


def loss_and_gradient(name: str, groups: GroupLogps, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """The losses, [B], and the gradient of their sum with respect to the policy's log-probabilities, [B, K]."""
    policy = groups.policy_BK.detach().requires_grad_()
    loss_B = preference_loss(name, replace(groups, policy_BK=policy), settings)
    (gradient_BK,) = torch.autograd.grad(loss_B.sum(), policy)
    return loss_B.detach(), gradient_BK


# By hand.


def test_dpo_by_hand() -> None:
    """beta = 0.5; Delta = log pi - log pi_ref is 2 for the chosen and -1 for the rejected response.

    h = 0.5 * (2 - -1) = 1.5, and -log sigmoid(1.5) = log(1 + e^-1.5) = log(1.2231302) = 0.2014133.
    """
    groups = make_groups(torch.tensor([[-3.0, -6.0]]), torch.tensor([[-5.0, -5.0]]))
    assert dpo_loss(groups, LossSettings(beta=0.5)).tolist() == pytest.approx([0.2014133], abs=1e-6)


def test_softmax_dpo_by_hand() -> None:
    """beta = 0.5; Delta is 2 for the chosen, -1 and 0 for the rejected responses: r = 1, -0.5, 0.

    log(1 + e^(-0.5 - 1) + e^(0 - 1)) = log(1 + 0.2231302 + 0.3678794) = log(1.5910096) = 0.4643686.
    """
    groups = make_groups(torch.tensor([[-3.0, -6.0, -4.0]]), torch.tensor([[-5.0, -5.0, -4.0]]))
    assert softmax_dpo_loss(groups, LossSettings(beta=0.5)).tolist() == pytest.approx([0.4643686], abs=1e-6)


def test_dmpo_by_hand() -> None:
    """The same group: r = 1, -0.5, 0; the rejected mean is -0.25, h = 1 - -0.25 = 1.25.

    log(1 + e^-1.25) = log(1.2865048) = 0.2519291.
    """
    groups = make_groups(torch.tensor([[-3.0, -6.0, -4.0]]), torch.tensor([[-5.0, -5.0, -4.0]]))
    assert dmpo_loss(groups, LossSettings(beta=0.5)).tolist() == pytest.approx([0.2519291], abs=1e-6)


def test_dmpo_pairs_by_hand() -> None:
    """beta = 0.5; log pi is -3 in two tokens for the chosen, -6 and -4 for the rejected responses.

    h = 0.5 * (-3 - -6) = 1.5 and 0.5 * (-3 - -4) = 0.5; log(1 + e^-1.5) = 0.2014133, log(1 + e^-0.5) = 0.4740770,
    their mean 0.3377451. The likelihood costs 3 / 2 per token: 0.3377451 + 1.5 = 1.8377451.
    """
    groups = make_groups(torch.tensor([[-3.0, -6.0, -4.0]]), num_tokens_BK=torch.tensor([[2, 3, 1]]))
    assert dmpo_pairs_loss(groups, LossSettings(beta=0.5)).tolist() == pytest.approx([1.8377451], abs=1e-6)


def test_rosepo_by_hand() -> None:
    """h = 1.5 as in DPO's example; log(1 + e^-1.5) = 0.2014133 and log(1 + e^1.5) = 0.2014133 + 1.5 = 1.7014133.

    eps = 0.2: 0.8 * 0.2014133 + 0.2 * 1.7014133 = 0.1611306 + 0.3402827 = 0.5014133. The second group has eps = 0.
    """
    policy, reference = torch.tensor([[-3.0, -6.0]] * 2), torch.tensor([[-5.0, -5.0]] * 2)
    groups = make_groups(policy, reference, smoothing=torch.tensor([0.2, 0.0]))
    found = rosepo_loss(groups, LossSettings(beta=0.5)).tolist()
    assert found == pytest.approx([0.5014133, 0.2014133], abs=1e-6)


def test_ipo_by_hand() -> None:
    """beta = 0.5; Delta = 2 and -1: h = 3, without beta; 1 / (2 * 0.5) = 1, and (3 - 1)^2 = 4."""
    groups = make_groups(torch.tensor([[-3.0, -6.0]]), torch.tensor([[-5.0, -5.0]]))
    assert ipo_loss(groups, LossSettings(beta=0.5)).tolist() == [4.0]


def test_simpo_by_hand() -> None:
    """beta = 2, gamma = 0.5; log pi = -3 in 2 tokens and -6 in 3: -1.5 and -2 per token, rewards -3 and -4.

    -3 - -4 - 0.5 = 0.5, and log(1 + e^-0.5) = 0.4740770.
    """
    groups = make_groups(torch.tensor([[-3.0, -6.0]]), num_tokens_BK=torch.tensor([[2, 3]]))
    assert simpo_loss(groups, LossSettings(beta=2.0, margin=0.5)).tolist() == pytest.approx([0.4740770], abs=1e-6)


def test_likelihood_of_the_chosen_by_hand() -> None:
    """-log pi(y_w) / |y_w| = 6 / 4 = 1.5; with weight 0.2 it adds 0.3 to DPO's log 2 (policy = reference)."""
    groups = make_groups(*[torch.tensor([[-6.0, -2.0]])] * 2, num_tokens_BK=torch.tensor([[4, 2]]))
    assert chosen_nll(groups).tolist() == [1.5]
    found = preference_loss("dpo", groups, LossSettings(beta=0.5, sft_coef=0.2))
    assert found.tolist() == pytest.approx([math.log(2) + 0.3])


def test_preference_metrics_by_hand() -> None:
    """beta = 0.5. Group 0: Delta = (2, 4, -2), r = (1, 2, -1): mean rejected 0.5, margin 0.5, beats one of two.

    Groups 1 to 3 have one rejected response; what pads them (a log-probability of 9) is not counted.
    Delta = (3, 1), r = (1.5, 0.5), margin 1, beats all; Delta = (-2, -4), r = (-1, -2), margin 1, beats all;
    Delta = (2, 4), r = (1, 2), margin -1, beats none. Group 4: equal rewards beat nothing.
    """
    policy = [[-1.0, -2.0, -6.0], [-1.0, -5.0, 9.0], [-6.0, -8.0, 9.0], [-2.0, -3.0, 9.0], [-4.0, -3.0, -2.0]]
    reference = [[-3.0, -6.0, -4.0], [-4.0, -6.0, 0.0], [-4.0, -4.0, 0.0], [-4.0, -7.0, 0.0], [-4.0, -3.0, -2.0]]
    mask = torch.tensor([[True, True, number in (0, 4)] for number in range(5)])
    groups = make_groups(torch.tensor(policy), torch.tensor(reference), mask_BK=mask)
    metrics = preference_metrics(groups, LossSettings(beta=0.5))
    assert {name: values.tolist() for name, values in metrics.items()} == {
        "reward_chosen": [1.0, 1.5, -1.0, 1.0, 0.0],
        "reward_rejected": [0.5, 0.5, -2.0, 2.0, 0.0],
        "margin": [0.5, 1.0, 1.0, -1.0, 0.0],
        "accuracy_one": [1.0, 1.0, 1.0, 0.0, 0.0],
        "accuracy_all": [0.0, 1.0, 1.0, 0.0, 0.0],
        "logp_chosen": [-1.0, -1.0, -6.0, -2.0, -4.0],
        "logp_rejected": [-4.0, -5.0, -8.0, -3.0, -2.5],
    }


# Identities.


@pytest.mark.parametrize("name", ["softmax_dpo", "dmpo"])
def test_with_one_negative_it_is_dpo(name: str) -> None:
    groups, settings = drawn_groups([2] * 50, seed=0), LossSettings(beta=0.7)
    torch.testing.assert_close(PREFERENCE_LOSSES[name](groups, settings), dpo_loss(groups, settings))


def test_dmpo_pairs_with_one_negative_is_dpo_against_a_uniform_reference_plus_the_likelihood() -> None:
    groups, settings = drawn_groups([2] * 50, seed=1), LossSettings(beta=0.7)
    uniform = replace(groups, reference_BK=torch.zeros_like(groups.reference_BK))
    expected = dpo_loss(uniform, settings) + chosen_nll(groups)
    torch.testing.assert_close(dmpo_pairs_loss(groups, settings), expected)


def test_dmpo_pairs_is_a_loop_over_its_pairs() -> None:
    groups, settings = drawn_groups([3, 5, 2], seed=2), LossSettings(beta=0.3)
    expected = []
    for row in range(3):
        logps = groups.policy_BK[row, groups.mask_BK[row]].tolist()
        pairs = [math.log1p(math.exp(0.3 * (rejected - logps[0]))) for rejected in logps[1:]]
        expected.append(sum(pairs) / len(pairs) - logps[0] / int(groups.num_tokens_BK[row, 0]))
    assert dmpo_pairs_loss(groups, settings).tolist() == pytest.approx(expected)


def test_softmax_dpo_is_the_published_formula() -> None:
    """S-DPO's code: -logsigmoid(-log(sum_j exp(beta * (Delta(y_j) - Delta(y_w))))), where that does not overflow."""
    groups = drawn_groups([5] * 50, seed=3)
    delta = groups.policy_BK - groups.reference_BK
    published = -logsigmoid(-torch.log(torch.exp(0.3 * (delta[:, 1:] - delta[:, :1])).sum(1)))
    torch.testing.assert_close(softmax_dpo_loss(groups, LossSettings(beta=0.3)), published)


@pytest.mark.parametrize("num_negatives", [1, 2, 7])
def test_policy_equal_to_reference_gives_log_of_the_group_size(num_negatives: int) -> None:
    """log 2 for the losses of one difference, log(1 + N) for the softmax; IPO's is (0 - 1 / (2 beta))^2."""
    groups = drawn_groups([1 + num_negatives] * 4, seed=4)
    groups = replace(groups, reference_BK=groups.policy_BK)
    expected = {"softmax_dpo": math.log(1 + num_negatives), "dmpo": math.log(2)}
    if num_negatives == 1:
        expected |= {"dpo": math.log(2), "rosepo": math.log(2), "ipo": 1 / 36}
    for name, value in expected.items():
        found = PREFERENCE_LOSSES[name](groups, LossSettings(beta=3.0))
        assert found.tolist() == pytest.approx([value] * 4, rel=1e-15), name


def test_equal_likelihoods_give_log_2_without_a_reference() -> None:
    """SimPO compares tokens, -2 each; dmpo_pairs compares sums, -6 each, and adds the likelihood, 2 per token."""
    per_token = make_groups(torch.tensor([[-6.0, -4.0]]), num_tokens_BK=torch.tensor([[3, 2]]))
    assert simpo_loss(per_token, LossSettings(beta=3.0)).tolist() == pytest.approx([math.log(2)])
    summed = make_groups(torch.tensor([[-6.0, -6.0, -6.0]]), num_tokens_BK=torch.tensor([[3, 2, 1]]))
    assert dmpo_pairs_loss(summed, LossSettings(beta=3.0)).tolist() == pytest.approx([math.log(2) + 2])


def test_rosepo_without_smoothing_is_dpo() -> None:
    groups, settings = drawn_groups([2] * 50, seed=5), LossSettings(beta=0.7)
    unsmoothed = replace(groups, smoothing_B=torch.zeros(50, dtype=torch.float64))
    torch.testing.assert_close(rosepo_loss(unsmoothed, settings), dpo_loss(groups, settings))


def test_rosepo_is_dpo_plus_its_smoothing_of_the_margin() -> None:
    """log sigmoid(-h) = log sigmoid(h) - h, hence -(1 - eps) log sigmoid(h) - eps log sigmoid(-h) = DPO + eps h."""
    groups, settings = drawn_groups([2] * 50, seed=6), LossSettings(beta=0.7)
    margin = preference_metrics(groups, settings)["margin"]
    expected = dpo_loss(groups, settings) + groups.smoothing_B * margin
    torch.testing.assert_close(rosepo_loss(groups, settings), expected)


@pytest.mark.parametrize("smoothing", [0.1, 0.3, 0.49])
def test_rosepo_is_least_where_the_policy_believes_the_oracle(smoothing: float) -> None:
    """At sigmoid(h) = 1 - eps, h = log((1 - eps) / eps): the loss is the entropy of eps and its gradient 0."""
    margin = math.log((1 - smoothing) / smoothing)
    groups = make_groups(torch.tensor([[margin, 0.0]], dtype=torch.float64), smoothing=smoothing)
    loss, gradient = loss_and_gradient("rosepo", groups, LossSettings(beta=1.0))
    entropy = -smoothing * math.log(smoothing) - (1 - smoothing) * math.log(1 - smoothing)
    assert loss.tolist() == pytest.approx([entropy])
    assert gradient[0].tolist() == pytest.approx([0.0, 0.0], abs=1e-12)


def test_ipo_is_least_at_its_target() -> None:
    """h = 1 / (2 beta): beta = 0.25 has it at 2; loss and gradient are 0 there, and 1 apart from it the loss is 1."""
    groups = make_groups(torch.tensor([[-3.0, -5.0], [-3.0, -6.0], [-3.0, -4.0]]))
    loss, gradient = loss_and_gradient("ipo", groups, LossSettings(beta=0.25))
    assert loss.tolist() == [0.0, 1.0, 1.0]
    assert gradient.tolist() == [[0.0, 0.0], [2.0, -2.0], [-2.0, 2.0]]


def test_simpo_of_equal_lengths_without_margin_is_dpo_against_a_uniform_reference() -> None:
    """beta / |y| takes the place of beta."""
    groups = drawn_groups([2] * 20, seed=7)
    groups = replace(groups, num_tokens_BK=torch.full((20, 2), 4), reference_BK=torch.zeros_like(groups.policy_BK))
    torch.testing.assert_close(simpo_loss(groups, LossSettings(beta=2.0)), dpo_loss(groups, LossSettings(beta=2.0 / 4)))


def test_the_margin_of_simpo_is_a_reward_that_the_chosen_must_have_more() -> None:
    """A chosen reward higher by gamma, beta * 5 / |y_w| = 2 * 5 / 4 = 2.5, makes up for it."""
    plain = drawn_groups([2] * 20, seed=8)
    plain = replace(plain, num_tokens_BK=torch.full((20, 2), 4))
    ahead = replace(plain, policy_BK=plain.policy_BK + torch.tensor([5.0, 0.0]))
    torch.testing.assert_close(
        simpo_loss(ahead, LossSettings(beta=2.0, margin=2.5)), simpo_loss(plain, LossSettings(beta=2.0))
    )


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_the_coefficient_adds_the_likelihood_to_every_loss(name: str) -> None:
    groups = padded_groups(name, seed=9)
    bare = PREFERENCE_LOSSES[name](groups, GENERAL)
    torch.testing.assert_close(preference_loss(name, groups, GENERAL), bare + 0.6 * chosen_nll(groups))
    torch.testing.assert_close(preference_loss(name, groups, replace(GENERAL, sft_coef=0.0)), bare)


def test_likelihood_of_the_chosen_is_the_cross_entropy_of_its_tokens() -> None:
    generator = torch.Generator().manual_seed(10)
    logits_TV, labels_T = torch.randn(5, 7, generator=generator), torch.tensor([3, 0, 6, 2, 2])
    logp = torch.log_softmax(logits_TV, dim=1)[torch.arange(5), labels_T].sum()
    groups = make_groups(torch.stack([logp, logp])[None], num_tokens_BK=torch.tensor([[5, 5]]))
    torch.testing.assert_close(chosen_nll(groups)[0], cross_entropy(logits_TV, labels_T))


@given(
    st.lists(st.floats(-30, 0), min_size=2, max_size=6),
    st.floats(0.05, 3),
)
def test_losses_of_a_group_lie_between_those_of_its_mean_and_its_pairs(logps: list[float], beta: float) -> None:
    """dmpo <= mean_j dpo_j <= max_j dpo_j <= softmax_dpo <= sum_j dpo_j.

    dpo_j = f(d_j), f(d) = log(1 + e^d), d_j = r(y_j) - r(y_w). f is convex, so f(mean d) <= mean f(d); a sum of
    exponentials is at least one of them; and the product of all 1 + e^d_j is at least 1 plus their sum.
    """
    settings = LossSettings(beta=beta)
    group = make_groups(torch.tensor([logps], dtype=torch.float64))
    pairs = make_groups(torch.tensor([[logps[0], rejected] for rejected in logps[1:]], dtype=torch.float64))
    dpo_N = dpo_loss(pairs, settings)
    chain = [
        dmpo_loss(group, settings).item(),
        (dmpo_pairs_loss(group, settings) - chosen_nll(group)).item(),
        dpo_N.max().item(),
        softmax_dpo_loss(group, settings).item(),
        dpo_N.sum().item(),
    ]
    assert all(one <= other + 1e-9 for one, other in pairwise(chain)), chain
    assert chain[1] == pytest.approx(dpo_N.mean().item(), abs=1e-9)


# Gradients and invariances.


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    groups = padded_groups(name, seed=11)
    policy = groups.policy_BK.detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda logps: preference_loss(name, replace(groups, policy_BK=logps), GENERAL), (policy,)
    )


def test_gradient_of_softmax_dpo_weighs_negatives_by_their_rewards() -> None:
    """d loss / d log pi(y_j) = beta * softmax(r)_j; that of the chosen response is minus the sum of the others."""
    groups = drawn_groups([4] * 6, seed=12)
    _, gradient = loss_and_gradient("softmax_dpo", groups, LossSettings(beta=0.6))
    shares = torch.softmax(0.6 * (groups.policy_BK - groups.reference_BK), dim=1)
    torch.testing.assert_close(gradient[:, 1:], 0.6 * shares[:, 1:])
    torch.testing.assert_close(gradient[:, 0], -gradient[:, 1:].sum(1))


def test_gradient_of_dmpo_weighs_negatives_equally() -> None:
    """arXiv 2405.16127, below eq. 3: beta * sigmoid(mean_j r(y_j) - r(y_w)) / N for each rejected response."""
    groups, settings = drawn_groups([4] * 6, seed=13), LossSettings(beta=0.6)
    _, gradient = loss_and_gradient("dmpo", groups, settings)
    weight = 0.6 * torch.sigmoid(-preference_metrics(groups, settings)["margin"])
    torch.testing.assert_close(gradient[:, 1:], (weight / 3)[:, None].expand(6, 3))
    torch.testing.assert_close(gradient[:, 0], -weight)


@pytest.mark.parametrize("size", [1e3, 1e4])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_margins_of_ten_thousand_do_not_overflow(name: str, sign: int, size: float) -> None:
    """float32, beta = 1, log pi(y_w) = 0, so the margin is m = -log pi(y_1), the likelihood term's value 0.

    The logistic losses tend to 0 for m = 1e4 and to -m for m = -1e4, rosepo with eps = 0.125 to 0.125 m and
    -0.875 m; ipo is (m - 0.5)^2. The gradients are their derivatives, and dmpo_pairs adds -1 for its likelihood.
    """
    m = sign * size
    groups = make_groups(torch.tensor([[0.0, -m]]), smoothing=0.125)
    loss, gradient = loss_and_gradient(name, groups, LossSettings(beta=1.0))
    expected, slope = (0.0, 0.0) if m > 0 else (-m, -1.0)
    if name == "rosepo":
        expected, slope = (0.125 * m, 0.125) if m > 0 else (-0.875 * m, -0.875)
    if name == "ipo":
        expected, slope = (m - 0.5) ** 2, 2 * (m - 0.5)
    assert loss.tolist() == pytest.approx([expected], rel=1e-6, abs=1e-3)
    assert gradient[0].tolist() == pytest.approx([slope - (name == "dmpo_pairs"), -slope])


@pytest.mark.parametrize("name", MANY)
def test_ragged_groups_equal_each_group_alone(name: str) -> None:
    """What stands in a padded place must not matter, nor may it receive a gradient."""
    groups = drawn_groups([2, 5, 3, 4], seed=14, padding=1e6)
    loss, gradient = loss_and_gradient(name, groups, GENERAL)
    for row in range(4):
        alone, alone_gradient = loss_and_gradient(name, group_alone(groups, row), GENERAL)
        torch.testing.assert_close(loss[row, None], alone)
        torch.testing.assert_close(gradient[row, groups.mask_BK[row]], alone_gradient[0])
    assert bool((gradient[~groups.mask_BK] == 0).all())
    assert bool((gradient[groups.mask_BK] != 0).all())


@pytest.mark.parametrize("padding", [math.nan, math.inf, -math.inf, 1e300])
@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_garbage_in_padded_places_reaches_nothing(name: str, padding: float) -> None:
    """Anomaly detection refuses a NaN at any step of the backward pass, also one that is masked later."""
    clean, dirty = padded_groups(name, seed=15), padded_groups(name, seed=15, padding=padding)
    expected_loss, expected_gradient = loss_and_gradient(name, clean, GENERAL)
    with torch.autograd.set_detect_anomaly(True):
        loss, gradient = loss_and_gradient(name, dirty, GENERAL)
    assert torch.equal(loss, expected_loss)
    assert torch.equal(gradient, expected_gradient)
    assert bool(torch.isfinite(gradient).all())
    assert bool((rewards(dirty, beta=1.0)[~dirty.mask_BK] == 0).all())
    expected_metrics = preference_metrics(clean, GENERAL)
    for key, values in preference_metrics(dirty, GENERAL).items():
        assert torch.equal(values, expected_metrics[key]), key


@given(st.sampled_from(MANY), st.permutations([1, 2, 3, 4]))
def test_the_order_of_the_negatives_does_not_matter(name: str, order: list[int]) -> None:
    """Padded places among them included: the places, and with them the gradients, move along."""
    groups = drawn_groups([5, 3, 2], seed=16)
    moved = [0, *order]
    shuffled = replace(
        groups,
        policy_BK=groups.policy_BK[:, moved],
        reference_BK=groups.reference_BK[:, moved],
        mask_BK=groups.mask_BK[:, moved],
        num_tokens_BK=groups.num_tokens_BK[:, moved],
    )
    loss, gradient = loss_and_gradient(name, groups, GENERAL)
    shuffled_loss, shuffled_gradient = loss_and_gradient(name, shuffled, GENERAL)
    torch.testing.assert_close(shuffled_loss, loss)
    torch.testing.assert_close(shuffled_gradient, gradient[:, moved])


# What the losses ask of groups, and the configuration of the losses.


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_a_group_without_a_rejected_response_is_refused(name: str) -> None:
    message = "^a preference loss needs at least one rejected response per group; group {} has none$"
    with pytest.raises(ValueError, match=message.format(3)):
        preference_loss(name, drawn_groups([2, 2, 2, 1, 2, 1], seed=17), LossSettings())
    with pytest.raises(ValueError, match=message.format(0)):
        PREFERENCE_LOSSES[name](drawn_groups([1, 1], seed=17), LossSettings())


def test_pairwise_losses_are_those_that_refuse_groups_that_are_not_pairs() -> None:
    groups = drawn_groups([2, 3], seed=18)
    for name, loss in PREFERENCE_LOSSES.items():
        if name in PAIRWISE:
            with pytest.raises(ValueError, match=f"^{name} takes exactly one rejected .* group; use softmax_dpo for"):
                loss(groups, LossSettings())
        else:
            assert loss(groups, LossSettings()).shape == (2,)


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_reference_free_losses_are_those_that_ignore_the_reference(name: str) -> None:
    groups = drawn_groups([2] * 4, seed=19)
    other = replace(groups, reference_BK=groups.reference_BK.flip(1))
    same = torch.equal(preference_loss(name, groups, GENERAL), preference_loss(name, other, GENERAL))
    assert same == (name in REFERENCE_FREE)


def test_configuration_names_the_losses_that_exist() -> None:
    assert set(get_args(get_type_hints(PreferenceConfig)["loss"])) == set(PREFERENCE_LOSSES)


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_configuration_refuses_more_negatives_than_the_loss_takes(name: str) -> None:
    arguments = [f"preference.loss={name}", "selfplay.num_negatives=2"]
    if name in PAIRWISE:
        with pytest.raises(ConfigError, match=f"needs preference.loss=softmax_dpo; {name} takes one rejected title"):
            load_config(arguments)
    else:
        assert load_config(arguments).preference.loss == name


@pytest.mark.parametrize("argument", ["margin=-1", "sft_coef=-0.1", "label_smoothing=0.5", "label_smoothing=-0.1"])
def test_configuration_refuses_settings_that_no_loss_takes(argument: str) -> None:
    with pytest.raises(ConfigError, match=f"preference.{argument.split('=')[0]}"):
        load_config([f"preference.{argument}"])


# TRL.


def trl_dpo_loss(
    groups: GroupLogps, *, beta: float, loss_type: str = "sigmoid", label_smoothing: float = 0.0
) -> tuple[Tensor, dict[str, float]]:
    """The loss of TRL 1.16's DPOTrainer, ``_compute_loss``, and what it logs, called without a trainer.

    Its model is replaced by one that returns given log-probabilities: sequences of a prompt token and the response
    tokens, of which the first has the whole log-probability; first the chosen ones and then the rejected ones, as
    TRL batches them.
    """
    num_tokens_S = groups.num_tokens_BK.T.reshape(-1)
    completion_ST = torch.arange(int(num_tokens_S.max()))[None] < num_tokens_S[:, None]
    logps_ST = groups.policy_BK.T.reshape(-1, 1) * (torch.arange(completion_ST.shape[1]) == 0)
    zeros_ST = torch.zeros_like(logps_ST)
    outputs = SimpleNamespace(log_probs=logps_ST, entropy=zeros_ST, mean_logits=zeros_ST, is_top1=zeros_ST > 0)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            device=torch.device("cpu"), gather_for_metrics=lambda value: value, gather=lambda value: value
        ),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        label_smoothing=label_smoothing,
        use_weighting=False,
        beta=beta,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    prompt_S1 = torch.zeros(len(completion_ST), 1, dtype=torch.bool)
    inputs: dict[str, Any] = {
        "input_ids": torch.ones(len(completion_ST), 1 + completion_ST.shape[1], dtype=torch.long),
        "attention_mask": torch.cat([~prompt_S1, completion_ST], dim=1).long(),
        "completion_mask": torch.cat([prompt_S1, completion_ST], dim=1).long(),
        "ref_chosen_logps": groups.reference_BK[:, 0],
        "ref_rejected_logps": groups.reference_BK[:, 1],
    }
    loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)
    return loss, {name: float(values[0]) for name, values in trainer._metrics["train"].items() if values}


def trl_cpo_loss(
    values_B2: Tensor, *, beta: float, loss_type: str, label_smoothing: float = 0.0, simpo_gamma: float = 0.0
) -> Tensor:
    """The losses of TRL 1.16's CPOTrainer, ``cpo_loss``, [B]; it compares the values it is given."""
    from trl.experimental.cpo import CPOTrainer

    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cpu")),
        alpha=0.0,
        beta=beta,
        loss_type=loss_type,
        label_smoothing=label_smoothing,
        simpo_gamma=simpo_gamma,
    )
    loss: Tensor = CPOTrainer.cpo_loss(trainer, values_B2[:, 0], values_B2[:, 1])[0]
    return loss


def test_dpo_equals_trl() -> None:
    groups, settings = drawn_groups([2] * 20, seed=20), LossSettings(beta=0.25)
    groups.policy_BK.requires_grad_()
    theirs, logged = trl_dpo_loss(groups, beta=0.25)
    ours = dpo_loss(groups, settings).mean()
    torch.testing.assert_close(ours, theirs)
    (gradient,) = torch.autograd.grad(ours, groups.policy_BK)
    (their_gradient,) = torch.autograd.grad(theirs, groups.policy_BK)
    torch.testing.assert_close(gradient, their_gradient)
    metrics = preference_metrics(replace(groups, policy_BK=groups.policy_BK.detach()), settings)
    for name, their_name in (
        ("reward_chosen", "rewards/chosen"),
        ("reward_rejected", "rewards/rejected"),
        ("margin", "rewards/margins"),
        ("accuracy_all", "rewards/accuracies"),
        ("logp_chosen", "logps/chosen"),
        ("logp_rejected", "logps/rejected"),
    ):
        assert float(metrics[name].double().mean()) == pytest.approx(logged[their_name]), name


def test_ipo_of_log_probabilities_per_token_equals_trl() -> None:
    """TRL divides both log-ratios by the number of response tokens; for one-token responses there is no difference."""
    groups, settings = drawn_groups([2] * 20, seed=21), LossSettings(beta=0.25)
    per_token = replace(
        groups,
        policy_BK=groups.policy_BK / groups.num_tokens_BK,
        reference_BK=groups.reference_BK / groups.num_tokens_BK,
    )
    theirs, _ = trl_dpo_loss(groups, beta=0.25, loss_type="ipo")
    torch.testing.assert_close(ipo_loss(per_token, settings).mean(), theirs)
    assert not torch.isclose(ipo_loss(groups, settings).mean(), theirs)
    short = replace(groups, num_tokens_BK=torch.ones_like(groups.num_tokens_BK))
    theirs, _ = trl_dpo_loss(short, beta=0.25, loss_type="ipo")
    torch.testing.assert_close(ipo_loss(short, settings).mean(), theirs)


def test_likelihood_of_the_chosen_equals_trl() -> None:
    """TRL's sft loss averages over the tokens of a batch; a batch of one group has the group's own mean."""
    groups = drawn_groups([2] * 5, seed=22)
    theirs = [trl_dpo_loss(group_alone(groups, row), beta=0.25, loss_type="sft")[0].item() for row in range(5)]
    assert chosen_nll(groups).tolist() == pytest.approx(theirs)


def test_rosepo_equals_robust_dpo_of_trl_at_another_smoothing() -> None:
    """TRL's robust loss, ((1 - s) l(h) - s l(-h)) / (1 - 2 s), l(h) = -log sigmoid(h), undoes flipped labels.

    rosepo, (1 - eps) l(h) + eps l(-h), expects them. l(-h) = l(h) + h makes them l(h) - s h / (1 - 2 s) and
    l(h) + eps h: equal at s = -eps / (1 - 2 eps), for eps = 0.2 at s = -1/3.
    """
    groups = replace(drawn_groups([2] * 20, seed=23), smoothing_B=torch.full((20,), 0.2, dtype=torch.float64))
    theirs, _ = trl_dpo_loss(groups, beta=0.25, loss_type="robust", label_smoothing=-0.2 / (1 - 2 * 0.2))
    torch.testing.assert_close(rosepo_loss(groups, LossSettings(beta=0.25)).mean(), theirs)


@pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")
@pytest.mark.parametrize("name", sorted(PAIRWISE))
def test_pairwise_losses_equal_those_of_trl_cpo(name: str) -> None:
    """CPOTrainer's formulas of two values: label smoothing as in conservative DPO, IPO as printed, SimPO.

    It gets log-ratios where the loss has a reference, and log-probabilities per token for simpo.
    """
    groups = replace(drawn_groups([2] * 20, seed=24), smoothing_B=torch.full((20,), 0.2, dtype=torch.float64))
    ratios, per_token = groups.policy_BK - groups.reference_BK, groups.policy_BK / groups.num_tokens_BK
    theirs = {
        "dpo": lambda: trl_cpo_loss(ratios, beta=0.5, loss_type="sigmoid"),
        "rosepo": lambda: trl_cpo_loss(ratios, beta=0.5, loss_type="sigmoid", label_smoothing=0.2),
        "ipo": lambda: trl_cpo_loss(ratios, beta=0.5, loss_type="ipo"),
        "simpo": lambda: trl_cpo_loss(per_token, beta=0.5, loss_type="simpo", simpo_gamma=0.3),
    }[name]()
    torch.testing.assert_close(PREFERENCE_LOSSES[name](groups, LossSettings(beta=0.5, margin=0.3)), theirs)


# Theorem 1.


def trained_policy(p_data: Tensor, q: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """A free categorical policy after gradient descent on the expected DPO loss over y_w ~ p_data, y_l ~ q."""
    items = len(p_data)
    pairs = torch.cartesian_prod(torch.arange(items), torch.arange(items))
    weights = p_data[pairs[:, 0]] * q[pairs[:, 1]]
    logits = torch.zeros(items, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=10 / beta**2, momentum=0.9)
    for _ in range(300):
        policy_B2, reference_B2 = torch.log_softmax(logits, 0)[pairs], reference.log()[pairs]
        loss = (weights * dpo_loss(make_groups(policy_B2, reference_B2), LossSettings(beta=beta))).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.softmax(logits.detach(), 0)


def distribution(name: str) -> Tensor:
    return torch.tensor(PROBABILITIES[name], dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("negatives", ["uniform", "skewed", "reference"])
def test_dpo_reaches_the_optimum_of_theorem_1(negatives: str, beta: float) -> None:
    """arXiv 2412.09243, Theorem 1: pi*(y) is proportional to pi_ref(y) * (p_D(y) / q(y))^(1 / beta).

    Derivation: with y_w ~ p_D and y_l ~ q the expected loss is a logistic regression that tells p_D(a) q(b) from
    p_D(b) q(a); its optimum has r(a) - r(b) = log(p_D(a) q(b)) - log(p_D(b) q(a)), so r = log(p_D / q) + constant,
    and r = beta * log(pi / pi_ref). ``negatives = reference`` is self-play, q = pi_ref.
    """
    p_data, q, reference = distribution("popular"), distribution(negatives), distribution("reference")
    optimum = reference * (p_data / q) ** (1 / beta)
    found = trained_policy(p_data, q, reference, beta=beta)
    torch.testing.assert_close(found, optimum / optimum.sum(), rtol=0, atol=1e-4)


def test_uniform_negatives_amplify_popularity_and_self_play_does_not() -> None:
    """From a policy that has learnt the data, pi_ref = p_D (section 4.1).

    Uniform q: pi* ~ p_D^(1 + 1 / beta), at beta = 1 p_D^2. Self-play, q = pi_ref = p_D: pi* = p_D, a fixed point.
    """
    p_data = distribution("popular")
    amplified = trained_policy(p_data, distribution("uniform"), p_data, beta=1.0)
    torch.testing.assert_close(amplified, p_data**2 / (p_data**2).sum(), rtol=0, atol=1e-4)
    torch.testing.assert_close(trained_policy(p_data, p_data, p_data, beta=1.0), p_data, rtol=0, atol=1e-4)
