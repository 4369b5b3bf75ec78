"""Embeds texts with a causal language model: the last hidden state of the last token (BIGRec, arXiv 2308.08434)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def embed_texts(model: Any, tokenizer: Any, texts: Sequence[str], *, batch_size: int = 64) -> npt.NDArray[np.float32]:
    """The last hidden state of each text's last token, float32 [N, D], in the order of ``texts``.

    Texts are bare titles: no quotes, no prompt, no end-of-sequence token; a beginning-of-sequence token where the
    tokenizer has one. A text without tokens is embedded as its beginning- or else its end-of-sequence token. Only the
    transformer under the language-model head runs, so that no logits are computed; active adapters are applied.

    Args:
        model: a transformers causal language model, PEFT-wrapped or not.
        tokenizer: its tokenizer.
        texts: any number of texts.
        batch_size: texts per forward pass; they are batched by length, so padding is small.
    """
    ids = [_token_ids(tokenizer, text) for text in texts]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    transformer = causal.base_model
    embeddings_ND = np.empty((len(ids), causal.config.get_text_config().hidden_size), dtype=np.float32)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            embeddings_ND[batch] = _embed_batch(transformer, [ids[index] for index in batch])
    finally:
        model.train(was_training)
    return embeddings_ND


def _token_ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.bos_token_id is not None:
        return [tokenizer.bos_token_id, *ids]
    return ids or [tokenizer.eos_token_id]


@torch.inference_mode()
def _embed_batch(transformer: Any, batch: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
    """[B, D] for token lists of any length. Padding is on the right: a causal model does not see it."""
    device = next(transformer.parameters()).device
    lengths_B = torch.tensor([len(ids) for ids in batch])
    ids_BT = torch.zeros((len(batch), int(lengths_B.max())), dtype=torch.long)
    for row, ids in enumerate(batch):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
    mask_BT = torch.arange(ids_BT.shape[1])[None, :] < lengths_B[:, None]
    hidden_BTD = transformer(
        input_ids=ids_BT.to(device), attention_mask=mask_BT.long().to(device), use_cache=False
    ).last_hidden_state
    last_BD = hidden_BTD[torch.arange(len(batch), device=device), (lengths_B - 1).to(device)]
    embeddings: npt.NDArray[np.float32] = last_BD.float().cpu().numpy()
    return embeddings
