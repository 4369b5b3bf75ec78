"""How far a decode is: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from tqdm import tqdm

from sprec_ray.types import Hypothesis

logger = logging.getLogger(__name__)

IsValid = Callable[[str], bool]
"""Whether a decoded text names a title of the catalogue."""

_LOG_EVERY_S = 10.0
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


class DecodeProgress:
    """Counts prompts, prompts per second, and the share of valid first hypotheses where ``is_valid`` tells."""

    def __init__(self, label: str, num_rows: int, is_valid: IsValid | None = None) -> None:
        self._label, self._num_rows, self._is_valid = label, num_rows, is_valid
        self._num_done = self._num_valid = 0
        # disable=None: off without a terminal
        self._bar = tqdm(total=num_rows, desc=label, unit="prompt", bar_format=_BAR, disable=None, leave=False)
        self._started_at = self._logged_at = time.monotonic()

    def advance(self, decoded: Sequence[tuple[Hypothesis, ...]]) -> None:
        """Count further prompts by what was decoded for them."""
        self._num_done += len(decoded)
        if self._is_valid is not None:
            self._num_valid += sum(self._is_valid(hypotheses[0].text) for hypotheses in decoded)
            self._bar.set_postfix_str(self._valid(), refresh=False)
        self._bar.update(len(decoded))
        is_done = self._num_done == self._num_rows
        if is_done or (self._bar.disable and time.monotonic() - self._logged_at > _LOG_EVERY_S):
            self._logged_at = time.monotonic()
            self._bar.clear()
            logger.info("%s: %d of %d prompts, %s", self._label, self._num_done, self._num_rows, self._figures())

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()

    def _figures(self) -> str:
        rate = f"{self._num_done / (time.monotonic() - self._started_at):.1f} prompts/s"
        return rate if self._is_valid is None else f"{rate}, {self._valid()}"

    def _valid(self) -> str:
        return f"{100 * self._num_valid / self._num_done:.1f} % valid"
