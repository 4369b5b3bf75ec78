"""Log-probabilities of titles by the workers against a model's plain logits."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from sprec_ray.cluster.engines.read_tasks import score
from sprec_ray.cluster.engines.row_tokens import preference_tokens
from sprec_ray.cluster.engines.tasks import ReadPolicy, ScoreTask
from sprec_ray.config.data import ScratchConfig
from sprec_ray.config.run import LoraConfig
from sprec_ray.data.tokens import TextSettings
from sprec_ray.models.scratch import write_untrained_model
from sprec_ray.training.phase import Worker
from sprec_ray.types import PreferenceGroup

TEXT = TextSettings(template="short", noun="book", max_prompt_tokens=120, max_response_tokens=20)
SCRATCH = ScratchConfig(vocab_size=300, hidden_size=32, num_layers=2, num_heads=2)
LORA = LoraConfig(rank=4, alpha=8, dropout=0.1, target_modules=("q_proj", "v_proj"))
CANDIDATES = ("Dune", "Émile", 'A Child Called "It"', "1984")
ROWS = tuple(
    PreferenceGroup(
        example_id=str(number),
        history=("Emma",) * number,
        chosen=CANDIDATES[0],
        rejected=CANDIDATES[1:],
        candidates=CANDIDATES,
    )
    for number in (3, 1, 2)
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The folders of a model and of an adapter whose B is not 0."""
    folder = tmp_path_factory.mktemp("policy")
    path = folder / "model"
    torch.manual_seed(0)
    write_untrained_model(path, ["Dune Émile 1984"] * 20, SCRATCH, max_positions=140)
    base = AutoModelForCausalLM.from_pretrained(path)
    model = get_peft_model(base, PeftLoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    model.save_pretrained(folder / "adapter")
    return str(path), str(folder / "adapter")


@pytest.mark.parametrize("with_adapter", [False, True])
def test_every_candidate_of_every_row_is_scored_in_order(with_adapter: bool, policy: tuple[str, str]) -> None:
    path, adapter = policy
    task = ScoreTask(
        policy=ReadPolicy(
            model_path=path,
            dtype="float32",
            trust_remote_code=False,
            adapter=adapter if with_adapter else None,
            lora=LORA,
        ),
        groups=ROWS,
        text=TEXT,
    )
    scored = score(task, Worker(0, 1, torch.device("cpu")))["logps"]
    model = AutoModelForCausalLM.from_pretrained(path)
    if with_adapter:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    encoder = TEXT.encoder(AutoTokenizer.from_pretrained(path))
    for row, logps in zip(ROWS, scored, strict=True):
        group = preference_tokens(row, encoder)
        for response, logps_T in zip(group.responses, logps, strict=True):
            ids = torch.tensor([[*group.prompt, *response]])
            with torch.no_grad():
                logps_TV = model(input_ids=ids).logits[0, len(group.prompt) - 1 : -1].log_softmax(-1)
            assert sum(logps_T) == pytest.approx(
                float(logps_TV.gather(1, torch.tensor(response)[:, None]).sum()), abs=1e-3
            )
