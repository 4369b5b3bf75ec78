"""The paper's settings and our differences from them."""

import pytest

from sprec_ray.config.load import config_to_dict, flatten, make_config
from sprec_ray.config.run import RunConfig
from sprec_ray.reports.paper import PAIR_SETTINGS, PAPER_SETTINGS, differences_from_paper, paper_notes

FLAT = flatten(config_to_dict(RunConfig()))


def test_every_setting_is_a_key_of_the_configuration():
    assert set(PAPER_SETTINGS) <= set(FLAT)


def test_the_settings_make_a_valid_configuration():
    nested: dict = {}
    for key, value in PAPER_SETTINGS.items():
        *sections, name = key.split(".")
        section = nested
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    assert differences_from_paper(flatten(config_to_dict(make_config(nested)))) == []


@pytest.mark.parametrize(("key", "ours"), [("preference.beta", 1.0), ("model.lora.target_modules", ["q_proj"])])
def test_a_changed_setting_is_listed_with_both_values(key, ours):
    assert (key, ours, PAPER_SETTINGS[key]) in differences_from_paper(FLAT | {key: ours})


def test_tuples_equal_lists_and_absent_keys_are_not_compared():
    assert differences_from_paper({"data.split": (0.8, 0.1, 0.1), "name": "x"}) == []


def test_pairs_are_compared_with_dmpo():
    assert set(PAIR_SETTINGS) <= set(FLAT)
    pairs = FLAT | PAIR_SETTINGS | {"data.task": "pairs"}
    assert differences_from_paper(pairs) == []
    assert differences_from_paper(pairs | {"preference.loss": "dpo"}) == [("preference.loss", "dpo", "dmpo")]
    assert set(paper_notes(pairs)).isdisjoint(paper_notes(FLAT))
