"""What is asked of a search over the catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogSearch:
    """What to look for in the catalogue.

    ``exact``: the most probable items. Log-probabilities only fall along a path, so the best node that is not expanded
    bounds all that is not found yet, and the search stops when nothing can enter the answers any more.
    ``beam``: step-synchronous beams, as of transformers' ``generate`` over ``prefix_allowed_tokens_fn``.
    ``sample``: items drawn one after the other without replacement, by Gumbel top-k (arXiv 1903.06059). With its noise
    a node's score is the largest of the items below it, so the exact search for the best scores is the sample.
    """

    kind: Literal["exact", "beam", "sample"] = "exact"
    num_answers: int
    beam_width: int | None = None
    """Beams of ``beam``, at least ``num_answers``, which None stands for."""
    max_tokens: int = 1024
    """Tokens after the prompt that ``exact`` computes before it goes on as a beam."""
    renormalize: bool = False
    """Score by probabilities among the tokens that the catalogue allows, instead of over the whole vocabulary."""
    temperature: float = 1.0
    """Of ``sample``, which draws by probabilities among the tokens that the catalogue allows."""
    seed: int = 0
    """Of ``sample``."""
    lm_weight: float = 1.0
    """Share g of the language model beside a collaborative model (D3)."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_answers <= self.width:
            raise ValueError(
                f"num_answers={self.num_answers} must be between 1 and the beam width, {self.width}; raise beam_width"
            )
        if self.max_tokens < 1 or not self.temperature > 0 or not 0 <= self.lm_weight <= 1:
            raise ValueError(
                f"max_tokens={self.max_tokens} must be at least 1, temperature={self.temperature} above 0 and "
                f"lm_weight={self.lm_weight} between 0 and 1"
            )

    @property
    def width(self) -> int:
        """Nodes of a prompt that are expanded at once."""
        return self.num_answers if self.kind != "beam" or self.beam_width is None else self.beam_width
