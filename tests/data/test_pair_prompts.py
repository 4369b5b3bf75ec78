from __future__ import annotations

from sprec_ray.data.pair_prompts import render_judgement, render_judgement_prompt


def test_published_wording() -> None:
    """The instruction of DMPO's rows, single spaces between its parts."""
    prompt = render_judgement_prompt(["Dune", "Emma"], ["It", "Cujo"], template="alpaca", noun="movie")
    assert (
        "You are an assistant working on movie recommendations. Here is the user's history of movies they have "
        "watched: <Title:Dune>, <Title:Emma>. Rank the likelihood of the user watching the two movies <Title:It> and "
        "<Title:Cujo>."
    ) in prompt
    assert prompt.endswith("### Response:\n")
    assert render_judgement(["Cujo", "It"], template="alpaca") == "<Title:Cujo>, <Title:It>\n"


def test_braces_in_titles_are_plain_text() -> None:
    assert '"{x}"' in render_judgement_prompt(["{x}"], ["{item}", "b"], template="short", noun="book")


def test_yes_or_no() -> None:
    prompt = render_judgement_prompt(["Dune"], ["It"], template="alpaca", noun="movie")
    assert "Whether the user will like the target movie <Title:It>?" in prompt
    assert render_judgement(["Yes."], template="alpaca") == "Yes.\n"
