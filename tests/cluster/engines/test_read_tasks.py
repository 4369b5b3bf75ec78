"""Answers as tokens, and their scores under a policy, without Ray."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sprec_ray.cluster.engines import read_tasks as reading
from sprec_ray.cluster.engines.read_tasks import score
from sprec_ray.cluster.engines.row_tokens import judgement_tokens
from sprec_ray.cluster.engines.tasks import ReadPolicy, ScoreTask
from sprec_ray.config.data import ScratchConfig
from sprec_ray.config.run import LoraConfig
from sprec_ray.data.pair_prompts import render_judgement, render_judgement_prompt
from sprec_ray.data.tokens import TextSettings
from sprec_ray.models.scratch import write_untrained_model
from sprec_ray.training.packing import TokenGroup
from sprec_ray.training.phase import Worker
from sprec_ray.types import JudgementGroup

TITLES = ("Dune", "Emma", "It", "Ulysses")
TEXT = TextSettings(template="short", noun="book", max_prompt_tokens=60, max_response_tokens=24)
ROWS = tuple(
    JudgementGroup(
        example_id=str(number),
        history=TITLES[: number % 4],
        candidates=(("It", "Ulysses"), ("It", "Ulysses"), ("Emma", "It"))[: 2 + number % 2],
        answers=(("Ulysses", "It"), ("It", "Ulysses"), ("It", "Emma"))[: 2 + number % 2],
    )
    for number in range(7)
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    scratch = ScratchConfig(vocab_size=300, hidden_size=32, num_layers=2, num_heads=2)
    write_untrained_model(folder, TITLES * 20, scratch, max_positions=128)
    return str(folder)


def encoder(model: str) -> Any:
    return TEXT.encoder(AutoTokenizer.from_pretrained(model))


def task(model: str) -> ScoreTask:
    return ScoreTask(
        policy=ReadPolicy(model_path=model, dtype="float32", trust_remote_code=False, adapter=None, lora=LoraConfig()),
        groups=ROWS,
        text=TEXT,
    )


def test_every_answer_follows_its_own_prompt(model: str) -> None:
    tokens, decode = judgement_tokens(ROWS[1], encoder(model)), encoder(model).tokenizer.decode
    assert [decode(response[:-1]) for response in tokens.responses] == [
        render_judgement(answer, template="short") for answer in ROWS[1].answers
    ]
    assert [decode(prompt[1:]) for prompt in tokens.prompts] == [
        render_judgement_prompt(["Dune"], candidates, template="short", noun="book")
        for candidates in ROWS[1].candidates
    ]


def test_a_prompt_without_room_loses_its_oldest_titles_and_keeps_its_candidates(model: str) -> None:
    long = JudgementGroup(example_id="1", history=TITLES * 9, candidates=(("It", "Emma"),), answers=(("It", "Emma"),))
    small = encoder(model)
    tokens = judgement_tokens(long, small)
    assert len(tokens.prompt) <= TEXT.max_prompt_tokens
    assert tokens.own_prompts is None
    text = small.tokenizer.decode(tokens.prompt[1:])
    assert text.startswith('Liked:\n"')
    assert text.endswith('"Ulysses"\nWhich book first, "It" or "Emma"?\n')
    assert small.num_truncated_prompts == 1


def test_scores_are_those_of_the_models_own_logits_in_the_rows_order(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_MAX_TOKENS", 100)  # several forward passes
    found = score(task(model), Worker(0, 1, torch.device("cpu")))["logps"]
    own = AutoModelForCausalLM.from_pretrained(model)
    for row, logps in zip(ROWS, found, strict=True):
        tokens = judgement_tokens(row, encoder(model))
        assert [len(answer) for answer in logps] == [len(response) for response in tokens.responses]
        for prompt, response, answer in zip(tokens.prompts, tokens.responses, logps, strict=True):
            with torch.no_grad():
                logits = own(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
            expected = [float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(response)]
            assert answer == pytest.approx(expected, abs=1e-4)


def test_workers_share_the_rows_and_all_have_every_score(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers one after the other; each hands its shard to what gathers them."""
    alone = score(task(model), Worker(0, 1, torch.device("cpu")))["logps"]
    shards: list[Any] = []

    def gather(out: list[Any], mine: Any) -> None:
        shards.append(mine)
        out[: len(shards)] = shards

    monkeypatch.setattr(reading.dist, "all_gather_object", gather)
    with pytest.raises(AttributeError):  # the first one lacks the other's shard, which is not there yet
        score(task(model), Worker(0, 2, torch.device("cpu")))
    both = score(task(model), Worker(1, 2, torch.device("cpu")))["logps"]
    assert [len(shard) for shard in shards] == [4, 3]
    for mine, other in zip(alone, both, strict=True):
        for first, second in zip(mine, other, strict=True):
            assert first == pytest.approx(second, abs=1e-4)


def test_batches_hold_so_many_tokens_at_most_and_a_long_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_MAX_TOKENS", 10)
    groups = [TokenGroup((1,) * length, ((2, 3),)) for length in (2, 3, 4, 20)]
    assert reading._batches([0, 1, 2, 3], groups) == [[0, 1], [2], [3]]
