from __future__ import annotations

import math

import pytest

from sprec_ray.decoding.engines.free_beams import Beam, BeamSearch, make_hypothesis

EOS = 0


class FakeTokenizer:
    eos_token_id = EOS

    def decode(self, token_ids: list[int], **options: bool) -> str:
        assert options == {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return " ".join(map(str, token_ids))


def test_eos_finishes_only_among_the_best_continuations() -> None:
    """Width 1: token 1 (-1) ranks before EOS (-2), so EOS is dropped and 1 runs on."""
    search = BeamSearch(beam_width=1, max_new_tokens=5, eos_token_id=EOS)
    search.advance([{1: -1.0, EOS: -2.0}])
    assert search.finished == []
    assert search.running == [Beam((1,), -1.0)]


def test_the_search_ends_when_nothing_that_runs_can_improve() -> None:
    """Width 2: after two steps the finished beams have -1 and -1.5, the best that runs -3."""
    search = BeamSearch(beam_width=2, max_new_tokens=9, eos_token_id=EOS)
    search.advance([{EOS: -1.0, 1: -1.2, 2: -2.0, 3: -3.0}])
    assert search.finished == [Beam((EOS,), -1.0)]
    assert search.running == [Beam((1,), -1.2), Beam((2,), -2.0)]
    search.advance([{EOS: -0.3, 1: -1.8, 2: -4.0, 3: -4.0}, {EOS: -2.0, 1: -1.1, 2: -4.0, 3: -4.0}])
    assert search.finished == [Beam((EOS,), -1.0), Beam((1, EOS), -1.5)]
    assert search.running == []


def test_a_finished_beam_is_replaced_by_a_better_one() -> None:
    """Width 2: EOS enters with -5, and two better beams push it out at the length limit."""
    search = BeamSearch(beam_width=2, max_new_tokens=2, eos_token_id=EOS)
    search.advance([{1: -0.1, EOS: -5.0, 2: -6.0, 3: -7.0}])
    assert search.finished == [Beam((EOS,), -5.0)]
    search.advance([{EOS: -0.1, 2: -0.2, 3: -9.0, 4: -9.0}, {EOS: -1.0, 2: -2.0, 3: -3.0, 4: -4.0}])
    assert [beam.token_ids for beam in search.finished] == [(1, EOS), (1, 2)]
    assert [beam.logp for beam in search.finished] == pytest.approx([-0.2, -0.3])


def test_impossible_tokens_are_no_continuations() -> None:
    search = BeamSearch(beam_width=2, max_new_tokens=3, eos_token_id=EOS)
    search.advance([{1: -1.0, 2: -math.inf, EOS: -math.inf}])
    assert search.running == [Beam((1,), -1.0)]


def test_a_hypothesis_counts_eos_as_a_token_and_not_as_text() -> None:
    hypothesis = make_hypothesis(FakeTokenizer(), [5, 6, EOS], -1.5)
    assert (hypothesis.text, hypothesis.num_tokens, hypothesis.finished) == ("5 6", 3, True)
    hypothesis = make_hypothesis(FakeTokenizer(), [5, 6], -1.5)
    assert (hypothesis.text, hypothesis.num_tokens, hypothesis.finished) == ("5 6", 2, False)


@pytest.mark.parametrize("logp", [math.nan, -math.inf])
def test_a_diverged_model_is_an_error(logp: float) -> None:
    with pytest.raises(ValueError, match="diverged"):
        make_hypothesis(FakeTokenizer(), [5], logp)
