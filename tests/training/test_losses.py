from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor
from trl.trainer.dpo_trainer import DPOTrainer

from sprec_ray.config import PreferenceConfig
from sprec_ray.training.losses import PREFERENCE_LOSSES, dpo_loss, preference_metrics, softmax_dpo_loss

PROBABILITIES = {
    "uniform": [1 / 6] * 6,
    "skewed": [0.05, 0.1, 0.3, 0.1, 0.25, 0.2],
    "popular": [0.4, 0.25, 0.15, 0.1, 0.06, 0.04],
    "reference": [0.2, 0.3, 0.1, 0.15, 0.05, 0.2],
}


def whole(logps_BK: Tensor) -> Tensor:
    return torch.ones(logps_BK.shape, dtype=torch.bool)


def random_logps(groups: int, responses: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    policy, reference = -20 * torch.rand(2, groups, responses, generator=generator, dtype=torch.float64)
    return policy, reference


def test_dpo_by_hand() -> None:
    """beta = 0.5; Delta = log pi - log pi_ref is 2 for the chosen and -1 for the rejected response.

    h = 0.5 * (2 - -1) = 1.5, and -log sigmoid(1.5) = log(1 + e^-1.5) = log(1.2231302) = 0.2014133.
    """
    policy, reference = torch.tensor([[-3.0, -6.0]]), torch.tensor([[-5.0, -5.0]])
    loss = dpo_loss(policy, reference, whole(policy), beta=0.5)
    assert loss.tolist() == pytest.approx([0.2014133], abs=1e-6)


def test_softmax_dpo_by_hand() -> None:
    """beta = 0.5; Delta is 2 for the chosen, -1 and 0 for the rejected responses: r = 1, -0.5, 0.

    log(1 + e^(-0.5 - 1) + e^(0 - 1)) = log(1 + 0.2231302 + 0.3678794) = log(1.5910096) = 0.4643686.
    """
    policy, reference = torch.tensor([[-3.0, -6.0, -4.0]]), torch.tensor([[-5.0, -5.0, -4.0]])
    loss = softmax_dpo_loss(policy, reference, whole(policy), beta=0.5)
    assert loss.tolist() == pytest.approx([0.4643686], abs=1e-6)


def test_softmax_dpo_with_one_negative_is_dpo() -> None:
    policy, reference = random_logps(50, 2, seed=0)
    torch.testing.assert_close(
        softmax_dpo_loss(policy, reference, whole(policy), beta=0.7),
        dpo_loss(policy, reference, whole(policy), beta=0.7),
    )


def test_softmax_dpo_is_the_published_formula() -> None:
    """S-DPO's code: -logsigmoid(-log(sum_j exp(beta * (Delta(y_j) - Delta(y_w))))), where that does not overflow."""
    policy, reference = random_logps(50, 5, seed=1)
    delta = policy - reference
    published = -torch.nn.functional.logsigmoid(-torch.log(torch.exp(0.3 * (delta[:, 1:] - delta[:, :1])).sum(1)))
    torch.testing.assert_close(softmax_dpo_loss(policy, reference, whole(policy), beta=0.3), published)


@pytest.mark.parametrize("num_negatives", [1, 2, 7])
def test_policy_equal_to_reference_gives_log_of_the_group_size(num_negatives: int) -> None:
    policy, _ = random_logps(4, 1 + num_negatives, seed=2)
    for name, loss in PREFERENCE_LOSSES.items():
        if name != "dpo" or num_negatives == 1:
            found = loss(policy, policy, whole(policy), beta=3.0)
            assert found.tolist() == pytest.approx([math.log(1 + num_negatives)] * 4)


def test_ragged_groups_equal_each_group_alone() -> None:
    """What stands in a padded place must not matter, nor may it receive a gradient."""
    policy, reference = random_logps(4, 5, seed=3)
    counts = (2, 5, 3, 4)
    mask = torch.arange(5)[None] < torch.tensor(counts)[:, None]
    policy = policy.masked_fill(~mask, 1e6).requires_grad_()
    together = softmax_dpo_loss(policy, reference, mask, beta=0.4)
    for row, count in enumerate(counts):
        one, other = policy[row : row + 1, :count], reference[row : row + 1, :count]
        torch.testing.assert_close(together[row : row + 1], softmax_dpo_loss(one, other, whole(one), beta=0.4))
    (gradient,) = torch.autograd.grad(together.sum(), policy)
    assert bool((gradient[~mask] == 0).all())
    assert bool((gradient[mask] != 0).all())


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_margins_of_ten_thousand_do_not_overflow(name: str, sign: int) -> None:
    """float32, margin m = r(y_w) - r(y_l): the loss tends to 0 for m = 1e4 and to -m for m = -1e4."""
    policy = torch.tensor([[sign * 1e4, 0.0]], requires_grad=True)
    loss = PREFERENCE_LOSSES[name](policy, torch.zeros(1, 2), whole(policy), beta=1.0)
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    assert loss.tolist() == pytest.approx([0.0 if sign > 0 else 1e4], abs=1e-3)
    assert gradient.tolist() == [pytest.approx([0.0, 0.0] if sign > 0 else [-1.0, 1.0])]


def test_gradients_are_those_of_finite_differences() -> None:
    policy, reference = random_logps(3, 4, seed=4)
    mask = torch.tensor([[True, True, True, True], [True, True, False, False], [True, True, True, False]])
    policy.requires_grad_()
    assert torch.autograd.gradcheck(lambda logps: softmax_dpo_loss(logps, reference, mask, beta=0.2), (policy,))
    pair = policy[:, :2].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda logps: dpo_loss(logps, reference[:, :2], mask[:, :2], beta=0.2), (pair,))


def test_gradient_of_softmax_dpo_weighs_negatives_by_their_rewards() -> None:
    """d loss / d log pi(y_j) = beta * softmax(r)_j; that of the chosen response is minus the sum of the others."""
    policy, reference = random_logps(6, 4, seed=5)
    policy.requires_grad_()
    (gradient,) = torch.autograd.grad(softmax_dpo_loss(policy, reference, whole(policy), beta=0.6).sum(), policy)
    shares = torch.softmax(0.6 * (policy.detach() - reference), dim=1)
    torch.testing.assert_close(gradient[:, 1:], 0.6 * shares[:, 1:])
    torch.testing.assert_close(gradient[:, 0], -gradient[:, 1:].sum(1))


def test_dpo_refuses_groups_that_are_not_pairs() -> None:
    three = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="exactly one rejected response per group; use softmax_dpo"):
        dpo_loss(three, three, whole(three), beta=0.1)
    short = torch.tensor([[True, True], [True, False]])
    with pytest.raises(ValueError, match="exactly one"):
        dpo_loss(three[:, :2], three[:, :2], short, beta=0.1)


def test_configuration_names_the_losses_that_exist() -> None:
    assert set(get_args(get_type_hints(PreferenceConfig)["loss"])) == set(PREFERENCE_LOSSES)


def trl_dpo_loss(
    policy_logps_B2: Tensor, reference_logps_B2: Tensor, *, beta: float
) -> tuple[Tensor, dict[str, float]]:
    """The loss of TRL 1.16's DPOTrainer, ``_compute_loss``, and what it logs, called without a trainer.

    Its model is replaced by one that returns given log-probabilities: sequences of a prompt token and one response
    token, first the chosen ones and then the rejected ones, as TRL batches them.
    """
    logps_S1 = policy_logps_B2.T.reshape(-1, 1)
    zeros_S1 = torch.zeros_like(logps_S1)
    outputs = SimpleNamespace(log_probs=logps_S1, entropy=zeros_S1, mean_logits=zeros_S1, is_top1=zeros_S1 > 0)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            device=torch.device("cpu"), gather_for_metrics=lambda value: value, gather=lambda value: value
        ),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        use_weighting=False,
        beta=beta,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    sequences = len(logps_S1)
    inputs: dict[str, Any] = {
        "input_ids": torch.ones(sequences, 2, dtype=torch.long),
        "attention_mask": torch.ones(sequences, 2, dtype=torch.long),
        "completion_mask": torch.tensor([[0, 1]] * sequences),
        "ref_chosen_logps": reference_logps_B2[:, 0],
        "ref_rejected_logps": reference_logps_B2[:, 1],
    }
    loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)
    return loss, {name: float(values[0]) for name, values in trainer._metrics["train"].items() if values}


def test_dpo_equals_trl() -> None:
    policy, reference = random_logps(20, 2, seed=6)
    policy.requires_grad_()
    theirs, logged = trl_dpo_loss(policy, reference, beta=0.25)
    ours = dpo_loss(policy, reference, whole(policy), beta=0.25).mean()
    torch.testing.assert_close(ours, theirs)
    (gradient,) = torch.autograd.grad(ours, policy)
    (their_gradient,) = torch.autograd.grad(theirs, policy)
    torch.testing.assert_close(gradient, their_gradient)
    metrics = preference_metrics(policy.detach(), reference, whole(policy), beta=0.25)
    for name, their_name in (
        ("reward_chosen", "rewards/chosen"),
        ("reward_rejected", "rewards/rejected"),
        ("margin", "rewards/margins"),
        ("accuracy_all", "rewards/accuracies"),
        ("logp_chosen", "logps/chosen"),
        ("logp_rejected", "logps/rejected"),
    ):
        assert float(metrics[name].double().mean()) == pytest.approx(logged[their_name]), name


def test_preference_metrics_by_hand() -> None:
    """beta = 0.5. Group 0: Delta = (2, 4, -2), r = (1, 2, -1): mean rejected 0.5, margin 0.5, beats one of two.

    Group 1 has one rejected response: Delta = (3, 1), r = (1.5, 0.5), margin 1, beats all of them; what pads it
    (a log-probability of 9) is not counted. Group 2: equal rewards beat nothing.
    """
    policy = torch.tensor([[-1.0, -2.0, -6.0], [-1.0, -5.0, 9.0], [-4.0, -3.0, -2.0]])
    reference = torch.tensor([[-3.0, -6.0, -4.0], [-4.0, -6.0, 0.0], [-4.0, -3.0, -2.0]])
    mask = torch.tensor([[True, True, True], [True, True, False], [True, True, True]])
    metrics = preference_metrics(policy, reference, mask, beta=0.5)
    assert {name: values.tolist() for name, values in metrics.items()} == {
        "reward_chosen": [1.0, 1.5, 0.0],
        "reward_rejected": [0.5, 0.5, 0.0],
        "margin": [0.5, 1.0, 0.0],
        "accuracy_one": [1.0, 1.0, 0.0],
        "accuracy_all": [0.0, 1.0, 0.0],
        "logp_chosen": [-1.0, -1.0, -4.0],
        "logp_rejected": [-4.0, -5.0, -2.5],
    }


def trained_policy(p_data: Tensor, q: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """A free categorical policy after gradient descent on the expected DPO loss over y_w ~ p_data, y_l ~ q."""
    items = len(p_data)
    pairs = torch.cartesian_prod(torch.arange(items), torch.arange(items))
    weights = p_data[pairs[:, 0]] * q[pairs[:, 1]]
    logits = torch.zeros(items, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=10 / beta**2, momentum=0.9)
    for _ in range(300):
        policy_B2, reference_B2 = torch.log_softmax(logits, 0)[pairs], reference.log()[pairs]
        loss = (weights * dpo_loss(policy_B2, reference_B2, whole(policy_B2), beta=beta)).sum()
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
