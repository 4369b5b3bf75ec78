from __future__ import annotations

import io
import logging
import sys

import pytest

from sprec_ray.cluster.engines.progress import DecodeProgress, StepProgress
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
    monkeypatch.setattr("sprec_ray.cluster.engines.progress.time.monotonic", lambda: now[0])
    return now


def test_a_log_line_now_and_then_and_one_at_the_end(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """10 prompts in 4 s, 2 of 3 first hypotheses valid; then silence for 10 s; 4 of 5 in 20 s."""
    with caplog.at_level(logging.INFO, logger="sprec_ray.cluster.engines.progress"):
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
    with caplog.at_level(logging.INFO, logger="sprec_ray.cluster.engines.progress"):
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


def test_steps_are_log_lines_without_a_terminal(
    clock: list[float], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first step, one line every ten seconds, the last: what ``ray job logs`` shows, with no carriage return."""
    clock[0] = 100.0
    with caplog.at_level(logging.INFO, logger="sprec_ray.cluster.engines.progress"):
        progress = StepProgress("sft")
        for second, step in ((0.0, 1), (0.5, 1), (4.0, 3), (11.0, 5), (12.0, 6)):
            clock[0] = 100.0 + second
            progress.show(step, 7, 2.0 / step)
        progress.close(is_done=True)
    assert [record.message for record in caplog.records] == [
        "sft: step 1 of 7, loss 2.000",
        "sft: step 5 of 7, loss 0.400",
        "sft: step 7 of 7, loss 0.333",
    ]
    assert "\r" not in capsys.readouterr().err


def test_a_phase_that_failed_is_not_shown_as_done(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sprec_ray.cluster.engines.progress"):
        progress = StepProgress("sft")
        progress.close(is_done=False)
        progress.show(1, 7, 2.0)
        progress.close(is_done=False)
    assert [record.message for record in caplog.records] == ["sft: step 1 of 7, loss 2.000"]


def test_steps_are_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with caplog.at_level(logging.INFO, logger="sprec_ray.cluster.engines.progress"):
        progress = StepProgress("sft")
        progress.show(1, 7, 2.0)
        progress.close(is_done=True)
    assert "7/7" in terminal.getvalue()
    assert not caplog.records
