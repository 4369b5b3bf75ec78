"""Rows as the tokens that workers score and train on."""

from __future__ import annotations

from functools import partial

from sprec_ray.cluster.engines.tasks import TrainRow
from sprec_ray.data.pair_prompts import render_judgement, render_judgement_prompt
from sprec_ray.data.tokens import TokenEncoder
from sprec_ray.training.packing import TokenGroup
from sprec_ray.types import JudgementGroup, PreferenceGroup


def row_tokens(row: TrainRow, encoder: TokenEncoder) -> TokenGroup:
    """The tokens of a row of either kind."""
    if isinstance(row, JudgementGroup):
        return judgement_tokens(row, encoder)
    return preference_tokens(row, encoder)


def preference_tokens(row: PreferenceGroup, encoder: TokenEncoder) -> TokenGroup:
    """The tokens of a row: every response whole, before them what of the history there is room for."""
    responses = tuple(tuple(encoder.response(title)) for title in (row.chosen, *row.rejected))
    prompt = encoder.prompt(row.history, candidates=row.candidates, room=encoder.room(responses))
    return TokenGroup(tuple(prompt), responses, smoothing=row.smoothing, weight=row.weight)


def judgement_tokens(row: JudgementGroup, encoder: TokenEncoder) -> TokenGroup:
    """The tokens of a row: every answer whole, before each its own prompt with as much history as there is room for."""
    responses = tuple(tuple(encoder.ended(render_judgement(it, template=encoder.template))) for it in row.answers)
    room = encoder.room(responses)
    prompts = []
    for candidates in row.candidates:
        render = partial(render_judgement_prompt, candidates=candidates, template=encoder.template, noun=encoder.noun)
        prompts.append(tuple(encoder.fitted(row.history, render, room=room)))
    return TokenGroup(prompts[0], responses, own_prompts=tuple(prompts) if len(prompts) > 1 else None)
