"""Log-probabilities of responses given their prompts: the one function behind SFT, preference training and scoring.

Dimensions: R rows (one prompt + response each), T tokens, M response tokens of all rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class ScoringBatch:
    """Right-padded rows of prompt + response.

    ``response_mask_RT`` is True at response tokens: prompt ``[7, 8]`` and response ``[9, 2]`` padded to 5 give ids
    ``[7, 8, 9, 2, 0]`` and response mask ``[F, F, T, T, F]``.
    """

    input_ids_RT: Tensor
    attention_mask_RT: Tensor
    response_mask_RT: Tensor

    @property
    def num_response_tokens_R(self) -> Tensor:
        """Response tokens per row, [R]."""
        return self.response_mask_RT.sum(1)


def make_scoring_batch(rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, device: torch.device) -> ScoringBatch:
    """A batch of ``(prompt ids, response ids)`` rows. Raises ValueError for an empty prompt or response."""
    length = max(len(prompt) + len(response) for prompt, response in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    attention = torch.zeros(len(rows), length, dtype=torch.long)
    is_response = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, (prompt, response) in enumerate(rows):
        if not prompt or not response:
            raise ValueError("a row needs at least one prompt token and one response token")
        end = len(prompt) + len(response)
        input_ids[row, :end] = torch.tensor([*prompt, *response])
        attention[row, :end] = 1
        is_response[row, len(prompt) : end] = True
    return ScoringBatch(input_ids.to(device), attention.to(device), is_response.to(device))


class ResponseScorer(nn.Module):
    """A causal language model whose forward pass returns summed response log-probabilities.

    The LM head runs at response positions only: logits are [M, V], never [R, T, V].
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: ScoringBatch) -> Tensor:
        """Sum of response token log-probabilities per row, [R], float32, in nats."""
        model: Any = self.model  # a transformers model, or one that PEFT has wrapped
        causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
        hidden_RTD = causal_lm.get_decoder()(
            input_ids=batch.input_ids_RT, attention_mask=batch.attention_mask_RT, use_cache=False
        ).last_hidden_state
        predicted_RT = batch.response_mask_RT[:, 1:]  # the state at t predicts the token at t + 1
        logits_MV = causal_lm.get_output_embeddings()(hidden_RTD[:, :-1][predicted_RT]).float()
        softcap = getattr(causal_lm.config, "final_logit_softcapping", None)
        if softcap is not None:
            logits_MV = softcap * torch.tanh(logits_MV / softcap)
        tokens_M = batch.input_ids_RT[:, 1:][predicted_RT]
        logps_M = logits_MV.gather(1, tokens_M[:, None])[:, 0] - torch.logsumexp(logits_MV, dim=1)
        logps_RT = torch.zeros(predicted_RT.shape, dtype=torch.float32, device=logits_MV.device)
        return logps_RT.masked_scatter(predicted_RT, logps_M).sum(1)


def check_scorer(model: Any, prompt: Sequence[int], response: Sequence[int]) -> None:
    """Compare the scorer with the model's own logits on one row; call it before the model is handed to an engine.

    Raises ValueError for an architecture that changes its logits after the LM head in a way the scorer does not know
    (Cohere and Granite scale them): its log-probabilities would be wrong without any other sign.
    """
    device = next(model.parameters()).device
    batch = make_scoring_batch([(prompt, response)], device=device)
    with torch.no_grad():
        ours = float(ResponseScorer(model)(batch)[0])
        logits_TV = model(input_ids=batch.input_ids_RT).logits[0, :-1].float()
    tokens_T = batch.input_ids_RT[0, 1:]
    logps_T = logits_TV.log_softmax(-1).gather(1, tokens_T[:, None])[:, 0]
    theirs = float(logps_T[batch.response_mask_RT[0, 1:]].sum())
    if abs(ours - theirs) > 0.05 * len(response):
        raise ValueError(
            f"{type(model).__name__} changes its logits after the LM head in a way that scoring does not know "
            f"({ours:.3f} nats against its own {theirs:.3f}); use a Llama, Mistral, Qwen or Gemma model"
        )
