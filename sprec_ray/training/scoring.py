"""Log-probabilities of responses given their prompts: the one function behind SFT, preference training and ranking.

A prompt's responses share one forward pass of it, and logits exist only where a response token is predicted. Runs on
torch and transformers alone.

Dimensions: B groups, K most responses of a group, S responses, L longest response, T tokens of the packed row, A
answering positions, M response tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from sprec_ray.training import tree_attention as attention
from sprec_ray.training.packing import PAD_MULTIPLE, Targets, TokenGroup, pack, plain_rows

logger = logging.getLogger(__name__)

MAX_LOGITS = 2**24
"""Logits held at once (64 MiB in float32): more answering positions are taken in chunks, computed again backward."""


@dataclass(frozen=True, slots=True)
class ScoringBatch:
    """Groups as one forward pass reads them: a packed row, or plain rows."""

    inputs: dict[str, Any]
    """Keyword arguments of the transformers model below the LM head."""
    answering_A: Tensor
    """Positions that predict response tokens, in the flattened hidden states."""
    targets: Targets


class ResponseScorer(nn.Module):
    """A causal language model whose forward pass returns the log-probabilities of groups of responses.

    >>> scorer = ResponseScorer(model, share_prompts=True)
    >>> scorer(scorer.batch([TokenGroup((7, 8), ((9, 2), (5, 6, 2)))], torch.device("cpu")))
    tensor([[-11.2, -15.9]])

    With ``share_prompts`` each prompt is computed once for all its responses, through an attention of our own, to
    which the model is switched for good (``why_not_shared`` says for which models). Without it every response is a row.
    """

    def __init__(self, model: nn.Module, *, share_prompts: bool = False) -> None:
        super().__init__()
        self.model = model
        self.share_prompts = share_prompts
        if share_prompts:
            self._attention, self._hooks = self._share()

    @property
    def causal_lm(self) -> Any:
        """The transformers model, inside what PEFT has wrapped around it."""
        model: Any = self.model
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def batch(self, groups: Sequence[TokenGroup], device: torch.device) -> ScoringBatch:
        """The groups as the tensors of one forward pass. Raises ValueError for an empty part."""
        if self.share_prompts:
            packed = pack(groups, pad_multiple=PAD_MULTIPLE if device.type == "cuda" else 1)
            inputs: dict[str, Any] = {
                "input_ids": packed.input_ids_T[None].to(device),
                "position_ids": packed.position_ids_T[None].to(device),
                "layout": attention.make_layout(packed, device),
            }
            return ScoringBatch(inputs, inputs["layout"].answering_A, packed.targets.to(device))
        rows = plain_rows(groups)
        inputs = {"input_ids": rows.input_ids_RT.to(device), "attention_mask": rows.attention_mask_RT.to(device)}
        return ScoringBatch(inputs, rows.answering_A.to(device), rows.targets.to(device))

    def forward(self, batch: ScoringBatch) -> Tensor:
        """Sums of response token log-probabilities, [B, K], float32, in nats; 0 where a group has no response."""
        logps_SL, targets = self.token_logps(batch), batch.targets
        logps_BK = torch.zeros(targets.mask_BK.shape, device=logps_SL.device)
        return logps_BK.masked_scatter(targets.mask_BK, logps_SL.sum(1))

    def token_logps(self, batch: ScoringBatch) -> Tensor:
        """Log-probability of every response token, [S, L], float32, in nats; 0 after the end of a response.

        The rows are the responses of the first group, then those of the second, and so on.
        """
        hidden = self.causal_lm.get_decoder()(**batch.inputs, use_cache=False).last_hidden_state
        states_AD = hidden.flatten(0, 1)[batch.answering_A]
        targets = batch.targets
        slots = torch.zeros(math.prod(targets.num_slots), device=states_AD.device)
        slots = slots.scatter(0, targets.slot_M, self._target_logps(states_AD, targets))
        return slots.view(targets.num_slots)

    def _target_logps(self, states_AD: Tensor, targets: Targets) -> Tensor:
        """Log-probabilities of the targets, [M]; never more than ``MAX_LOGITS`` logits at once."""
        num_states = len(states_AD)
        size = max(1, MAX_LOGITS // self.causal_lm.get_output_embeddings().out_features)
        if num_states <= size:
            return self._chunk_logps(states_AD, targets.state_M, targets.token_M)
        chunks = []
        for first in range(0, num_states, size):
            states = states_AD[first : first + size]
            within = slice(targets.offsets[first], targets.offsets[min(first + size, num_states)])
            arguments = states, targets.state_M[within] - first, targets.token_M[within]
            chunks.append(checkpoint(self._chunk_logps, *arguments, use_reentrant=False, preserve_rng_state=False))
        return torch.cat(chunks)

    def _chunk_logps(self, states_AD: Tensor, state_M: Tensor, token_M: Tensor) -> Tensor:
        logits_AV: Tensor = self.causal_lm.get_output_embeddings()(states_AD).float()
        softcap = getattr(self.causal_lm.config, "final_logit_softcapping", None)
        if softcap is not None:
            logits_AV = softcap * torch.tanh(logits_AV / softcap)
        return logits_AV[state_M, token_M] - torch.logsumexp(logits_AV, dim=1)[state_M]

    def _share(self) -> tuple[str, list[RemovableHandle]]:
        """Switch the model to our attention; what it had, and the hooks that were set."""
        before = self.causal_lm.config._attn_implementation
        self.causal_lm.set_attn_implementation(attention.NAME)
        return before, _compute_answers_only(self.causal_lm.get_decoder())

    def stop_sharing(self) -> None:
        """Give the model its own attention back; from now on every response is a row."""
        self.share_prompts = False
        self.causal_lm.set_attn_implementation(self._attention)
        for hook in self._hooks:
            hook.remove()


def _compute_answers_only(decoder: Any) -> list[RemovableHandle]:
    """Let the last layer compute queries, attention outputs and its MLP at answering positions only.

    Its keys and values are needed everywhere, but nothing reads its output elsewhere: with a prompt of 220 tokens and
    a response of 12 that is most of the layer. Norms and residuals, which cost little, still run everywhere. A layer
    whose parts have other names than Llama's is left as it is.
    """
    try:
        layer = decoder.layers[-1]
        parts = (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp)
    except AttributeError:
        return []
    layer.self_attn.answers_only = True

    def remember(module: Any, arguments: Any, options: dict[str, Any]) -> None:
        module.layout = options.get("layout")  # here and not in forward(): checkpointing computes the layer again

    def select(_: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (arguments[0][:, layer.layout.answering_A], *arguments[1:])

    def spread(module: Any, arguments: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # a mixture of experts, with its router's weights
            return (spread(module, arguments, output[0]), *output[1:])
        whole = output.new_zeros(output.shape[0], layer.layout.length, output.shape[2])
        return whole.index_copy(1, layer.layout.answering_A, output)

    hooks = [layer.register_forward_pre_hook(remember, with_kwargs=True)]
    for part in parts:
        hooks += [part.register_forward_pre_hook(select), part.register_forward_hook(spread)]
    return hooks


def make_scorer(model: Any, groups: Sequence[TokenGroup]) -> ResponseScorer:
    """A scorer for these groups, checked against the model's own logits; it shares prompts where the model can.

    Call it before the model is handed to an engine, in evaluation mode. Where prompts cannot be shared a warning says
    why. Raises ValueError for a group longer than the model's context, and for an architecture that changes its logits
    after the LM head in a way the scorer does not know (Cohere and Granite scale them): its log-probabilities would be
    wrong without any other sign.
    """
    prompt, response = groups[0].prompt[-16:], groups[0].responses[0][:4]
    sample = [TokenGroup(prompt, (response, response[:1] + prompt[:3], prompt[:2]))]
    plain = ResponseScorer(model)
    check_lengths(plain.causal_lm.config, groups)
    device = next(model.parameters()).device
    with torch.no_grad():
        plain_K = plain(plain.batch(sample, device))[0]
        own = _own_logp(model, prompt, response)
    if abs(float(plain_K[0]) - own) > _TOLERANCE * len(response):
        raise ValueError(
            f"{type(plain.causal_lm).__name__} changes its logits after the LM head in a way that scoring does not "
            f"know ({float(plain_K[0]):.3f} nats against its own {own:.3f}); use a Llama, Mistral, Qwen or Gemma model"
        )
    reason = why_not_shared(plain.causal_lm, groups)
    if reason is None:
        scorer = ResponseScorer(model, share_prompts=True)
        reason = _difference(scorer, sample, plain_K)
        if reason is None:
            return scorer
        scorer.stop_sharing()
    logger.warning("every response repeats its prompt, which is slower: %s", reason)
    return plain


_TOLERANCE = 0.05
"""Nats per token between two ways to a log-probability; bfloat16 is within it, another architecture is not."""


def check_lengths(config: Any, groups: Sequence[TokenGroup]) -> None:
    """Raise ValueError for a group that is longer than the model's context."""
    context = getattr(config, "max_position_embeddings", None)
    longest = max(groups, key=lambda group: group.num_positions)
    if context is not None and longest.num_positions > context:
        raise ValueError(
            f"a prompt of {len(longest.prompt)} tokens and its longest response have {longest.num_positions} tokens, "
            f"but the model's context is {context}; lower model.max_prompt_tokens"
        )


def why_not_shared(causal_lm: Any, groups: Sequence[TokenGroup]) -> str | None:
    """Why responses of these groups cannot share their prompts under this model, or None where they can."""
    name, config = type(causal_lm).__name__, causal_lm.config
    longest = max(group.num_positions for group in groups)
    if not getattr(causal_lm, "_supports_attention_backend", False):
        return f"{name} does not take its attention through transformers' attention interface"
    if getattr(config, "attention_dropout", 0.0) > 0:
        return f"{name} has attention dropout"
    for window in ("sliding_window", "attention_chunk_size"):
        size = getattr(config, window, None)
        if size is not None and size < longest:
            return f"{name} attends to {size} tokens ({window}), and the longest prompt and response have {longest}"
    return None


def _difference(scorer: ResponseScorer, sample: Sequence[TokenGroup], plain_K: Tensor) -> str | None:
    name = type(scorer.causal_lm).__name__
    try:
        with torch.no_grad():
            shared_K = scorer(scorer.batch(sample, plain_K.device))[0]
    except (RuntimeError, TypeError, AttributeError) as error:  # of the architecture, or of the GPU's kernel
        return f"{name} does not run with a shared prompt ({type(error).__name__}: {error})"
    off = float((shared_K - plain_K).abs().max())
    tokens = max(map(len, sample[0].responses))
    return None if off <= _TOLERANCE * tokens else f"{name} scores differently with a shared prompt (by {off:.2f} nats)"


def _own_logp(model: Any, prompt: Sequence[int], response: Sequence[int]) -> float:
    """The response's log-probability from the model's own logits."""
    ids = torch.tensor([[*prompt, *response]], device=next(model.parameters()).device)
    logps_TV = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    return float(logps_TV.gather(1, ids[0, len(prompt) :, None]).sum())
