"""How far a decode or a training phase is: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

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


class StepProgress:
    """Shows optimizer steps and their loss: the first, the last, and what is reported between."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: tqdm[Any] | None = None
        self._logged_at = 0.0
        self._last = (0, 0, 0.0)

    def show(self, step: int, num_steps: int, loss: float) -> None:
        """Show that ``step`` of ``num_steps`` optimizer steps are done."""
        if (step, num_steps, loss) == self._last:
            return
        first, self._last = self._bar is None, (step, num_steps, loss)
        if self._bar is None:
            self._bar = tqdm(total=num_steps, desc=self._label, unit="step", mininterval=1.0, disable=None)
        self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self._bar.update(step - self._bar.n)
        if self._bar.disable and (first or step == num_steps or time.monotonic() - self._logged_at > _LOG_EVERY_S):
            self._log()

    def close(self, *, is_done: bool) -> None:
        """End the bar; of a phase that is done the last step counts, though its report may have come too late."""
        if self._bar is None:
            return
        _, num_steps, loss = self._last
        if is_done:
            self.show(num_steps, num_steps, loss)
        self._bar.close()

    def _log(self) -> None:
        self._logged_at = time.monotonic()
        logger.info("%s: step %d of %d, loss %.3f", self._label, *self._last)
