from __future__ import annotations

import io
import logging
import sys

import pytest

from sprec_ray.cluster.progress import DecodeProgress
from sprec_ray.types import Hypothesis


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def decoded(*texts: str) -> list[tuple[Hypothesis, ...]]:
    """One prompt per text, which is its first hypothesis; the second is always a title."""
    return [
        tuple(Hypothesis(text=beam, logp=0.0, num_tokens=1, finished=True) for beam in (text, "Dune")) for text in texts
    ]


def is_title(text: str) -> bool:
    return text in {"Dune", "Emma"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("sprec_ray.cluster.progress.time.monotonic", lambda: now[0])
    return now


def test_a_log_line_now_and_then_and_one_at_the_end(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """10 prompts in 4 s, 2 of 3 first hypotheses valid; then silence for 10 s; 4 of 5 in 20 s."""
    with caplog.at_level(logging.INFO, logger="sprec_ray.cluster.progress"):
        progress = DecodeProgress("negatives", 5, is_title)
        for second, texts in ((4.0, ("Dune", "?")), (12.0, ("Emma",)), (13.0, ("Emma",)), (20.0, ("Dune",))):
            clock[0] = second
            progress.advance(decoded(*texts))
        progress.close()
    assert caplog.messages == [
        "negatives: 3 of 5 prompts, 0.2 prompts/s, 66.7 % valid",
        "negatives: 5 of 5 prompts, 0.2 prompts/s, 80.0 % valid",
    ]


def test_without_a_catalogue_only_the_rate_is_told(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sprec_ray.cluster.progress"):
        progress = DecodeProgress("titles", 2)
        clock[0] = 0.5
        progress.advance(decoded("Dune", "Emma"))
    assert caplog.messages == ["titles: 2 of 2 prompts, 4.0 prompts/s"]


def test_the_bar_of_a_terminal_shows_prompts_per_second_and_valid_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = DecodeProgress("negatives", 4, is_title)
    progress.advance(decoded("Dune", "?"))
    progress._bar.refresh()
    shown = terminal.getvalue().rsplit("\r", 1)[-1]
    progress.close()
    assert shown.startswith("negatives:  50%|")
    assert "2/4" in shown
    assert "prompt/s, 50.0 % valid]" in shown
