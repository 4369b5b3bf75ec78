import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprec_ray.data.prompts import CANDIDATES_TEMPLATES, TEMPLATES, parse_response, render_prompt, render_response

titles = st.text(alphabet=st.characters(blacklist_characters="\n", blacklist_categories=["Cs"]), min_size=1)


@given(titles)
def test_a_response_parses_back_to_its_title(title: str) -> None:
    assert parse_response(render_response(title)) == title


@given(titles, st.text(alphabet=st.characters(blacklist_categories=["Cs"])))
def test_what_follows_the_first_line_does_not_count(title: str, rest: str) -> None:
    assert parse_response(render_response(title) + rest) == title


@pytest.mark.parametrize(
    "title", ['A Child Called "It"', '"Great" Cats', "A\u2028B", "A\u0085B", '"', "Good, Bad", " Game"]
)
def test_awkward_titles_survive(title: str) -> None:
    assert parse_response(render_response(title)) == title


@pytest.mark.parametrize("text", ["", "Dune", '"', '""', '"Dune', 'Dune"', '\n"Dune"', ' "Dune"'])
def test_a_response_that_is_not_a_quoted_title_has_none(text: str) -> None:
    assert parse_response(text) is None


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_the_prompt_lists_the_history_oldest_first_and_ends_where_the_response_begins(template: str) -> None:
    prompt = render_prompt(["Dune", "Emma"], template=template, noun="book")
    assert '"Dune", "Emma"' in prompt
    assert prompt.endswith(":\n")
    assert "book" in prompt


def test_braces_in_titles_are_text() -> None:
    assert '"{history}"' in render_prompt(["{history}"], template="alpaca", noun="item")


@pytest.mark.parametrize("template", sorted(CANDIDATES_TEMPLATES))
def test_candidates_are_listed_after_the_history(template: str) -> None:
    prompt = render_prompt(["Dune"], template=template, noun="artist", candidates=["{history}", 'A "B"'])
    assert prompt.index('"Dune"') < prompt.index('"{history}", "A "B""')
    assert prompt.endswith(":\n")
    assert "Candidates:\n" in prompt


def test_both_tasks_have_the_same_templates() -> None:
    assert CANDIDATES_TEMPLATES.keys() == TEMPLATES.keys()
