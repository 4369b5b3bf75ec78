"""Item embeddings, and what holds for every network."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sprec_ray.recommenders.items import Items
from sprec_ray.recommenders.recommender import NETWORKS

IDS = [3, 1, 4, 1, 5]


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"extra": 1}, {"temperature": 0.07}])
def test_scores_of_chosen_items_are_those_of_all_items(options: dict[str, Any]) -> None:
    items = Items(5, 3, **options)
    if items.bias is not None:
        torch.nn.init.normal_(items.bias)
    states_XH = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    logits_XI = items.logits(states_XH)
    assert logits_XI.shape == (4, 5)
    ids_XN = torch.tensor([[1, 5], [2, 3], [4, 4], [5, 1]])
    torch.testing.assert_close(items.logits_of(states_XH, ids_XN), logits_XI.gather(1, ids_XN - 1))


def test_a_score_with_a_temperature_is_the_cosine_over_it() -> None:
    """State (3, 4) and item (4, 3): cosine 24 / 25, over 0.5 it is 1.92."""
    items = Items(1, 2, temperature=0.5)
    with torch.no_grad():
        items.embedding.weight[1] = torch.tensor([4.0, 3.0])
    torch.testing.assert_close(items.logits(torch.tensor([[3.0, 4.0]])), torch.tensor([[1.92]]))


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_before_a_history_changes_nothing(name: str, make_network: Any) -> None:
    network = make_network(name, max_history=8)
    bare = network(torch.tensor([IDS]))
    assert bare.shape == (1, 4)
    for count in (1, 3):
        torch.testing.assert_close(network(torch.tensor([[0] * count + IDS])), bare)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_history_is_read_alone_or_beside_others(name: str, make_network: Any) -> None:
    """Also beside an empty one."""
    network = make_network(name)
    together = network(torch.tensor([[0, 0, 3, 1, 4], [0, 0, 0, 0, 0], [5, 4, 3, 2, 1]]))
    assert together.isfinite().all()
    torch.testing.assert_close(together[:1], network(torch.tensor([[3, 1, 4]])))
    torch.testing.assert_close(together[2:], network(torch.tensor([[5, 4, 3, 2, 1]])))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_that_a_history_reaches_has_a_gradient(name: str, make_network: Any) -> None:
    network = make_network(name, dropout=0.0)
    logits = network.items.logits(network(torch.tensor([[5, 4, 3, 2, 1, 3]])))
    torch.nn.functional.cross_entropy(logits, torch.tensor([2])).backward()
    assert [key for key, value in network.named_parameters() if value.grad is None] == []
    assert network.items.embedding.weight.grad[0].abs().sum() == 0


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_states_are_those_of_the_prefixes_and_see_nothing_later(name: str, make_network: Any) -> None:
    """SASRec counts places from the end, so its prefixes are compared by what a later item changes."""
    network = make_network(name)
    states = network.states(torch.tensor([[0, *IDS]]))
    changed = network.states(torch.tensor([[0, *IDS[:-2], 9, 8]]))
    torch.testing.assert_close(states[:, 1:4], changed[:, 1:4])
    assert (states[:, 4:] - changed[:, 4:]).abs().amax() > 1e-3
    if name == "gru4rec":
        for length in range(1, 6):
            torch.testing.assert_close(states[:, length], network(torch.tensor([IDS[:length]])))
