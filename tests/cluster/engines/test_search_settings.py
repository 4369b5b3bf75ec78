from __future__ import annotations

import pytest

from sprec_ray.cluster.engines.search_settings import evaluation_search, max_beam_width, negatives_search
from sprec_ray.cluster.stages.prepare_data import check_catalog
from sprec_ray.config.load import load_config
from sprec_ray.config.run import ConfigError, RunConfig
from sprec_ray.data.catalog import Catalog
from sprec_ray.decoding.catalog.request import CatalogSearch


def configured(*settings: str) -> RunConfig:
    return load_config(["configs/demo.yaml", "preference.loss=softmax_dpo", *settings])


def test_twice_as_many_answers_as_negatives_are_decoded() -> None:
    assert negatives_search(configured("selfplay.num_negatives=3"), 0) == CatalogSearch(
        kind="exact", num_answers=6, beam_width=10
    )


def test_what_the_history_takes_away_is_decoded_on_top() -> None:
    config = configured("selfplay.num_negatives=3", "selfplay.exclude_history=true", "data.max_history=7")
    search = negatives_search(config, 0)
    assert isinstance(search, CatalogSearch)
    assert (search.num_answers, search.width) == (13, 13)


def test_one_greedy_answer_is_the_most_probable_one() -> None:
    assert negatives_search(configured("selfplay.negatives=greedy"), 0) == CatalogSearch(
        kind="exact", num_answers=1, beam_width=10
    )


def test_each_iteration_draws_other_samples() -> None:
    config = configured("selfplay.negatives=sample", "selfplay.temperature=0.5")
    first, second = negatives_search(config, 0), negatives_search(config, 1)
    assert isinstance(first, CatalogSearch)
    assert isinstance(second, CatalogSearch)
    assert (first.kind, first.temperature, first.num_answers) == ("sample", 0.5, 2)
    assert first.seed != second.seed
    assert negatives_search(config, 0) == first


def test_the_best_k_titles_are_measured() -> None:
    search = evaluation_search(configured("evaluation.k=[1,20]", "decoding.search=beam"))
    assert search == CatalogSearch(kind="beam", num_answers=20, beam_width=20)


def test_free_decoding_counts_beams() -> None:
    free = ["decoding.search=free", "evaluation.grounding=policy", "selfplay.num_negatives=4"]
    config = configured(*free)
    assert (negatives_search(config, 0), evaluation_search(config), max_beam_width(config)) == (8, 1, 8)
    assert max_beam_width(configured()) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["decoding.search=free"], "set evaluation.grounding=policy or decoding.search=exact"),
        (
            ["decoding.search=free", "evaluation.grounding=policy", "selfplay.negatives=sample"],
            "selfplay.negatives=sample draws titles of the catalogue; set decoding.search=exact",
        ),
        (["selfplay.negatives=greedy", "selfplay.num_negatives=2"], "set selfplay.negatives=beam"),
        (["selfplay.negatives=self_play"], "selfplay.negatives"),
    ],
)
def test_settings_that_do_not_fit_together_name_the_remedy(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(*settings)


def test_a_choice_among_candidates_is_one_greedy_text() -> None:
    config = configured("data.task=candidates", "selfplay.negatives=random", "selfplay.num_negatives=10")
    assert (evaluation_search(config), max_beam_width(config)) == (1, 1)


@pytest.mark.parametrize("phase", ["sft", "selfplay_sft"])
def test_weights_by_genre_need_genres_before_anything_is_trained(phase: str) -> None:
    titles = tuple(f"T{index}" for index in range(20))
    config = configured(f"{phase}.weighting=genre")
    check_catalog(config, Catalog(titles, {"T0": ("drama",)}))
    with pytest.raises(ConfigError, match=f"^{phase}.weighting=genre needs genres.*{phase}.weighting=none"):
        check_catalog(config, Catalog(titles, {}))
