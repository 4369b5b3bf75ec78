"""Scores a file of predictions in SPRec's format; without arguments it says how to call it."""

from jobs.command import run_job
from sprec_ray.reports.scores_file import write_scores


def main(arguments: list[str]) -> None:
    """Print the scores that are written to ``out``."""
    print(write_scores(arguments))


if __name__ == "__main__":
    run_job(main)
