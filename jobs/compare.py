"""Compare methods: ``python -m jobs.compare configs/goodreads.yaml methods=[bigrec,sprec] seeds=[0,1,2] ...``."""

import sys

from jobs.command import run_job
from sprec_ray.config.compare import load_comparison


def main(arguments: list[str]) -> None:
    """Run or continue the comparison and print its table; exits with 1 when runs failed."""
    comparison = load_comparison(arguments)
    from sprec_ray.cluster.studies.comparing import compare_methods  # after the comparison is known to be good
    from sprec_ray.reports.compare.tables import markdown_table, table_columns

    outcome = compare_methods(comparison)
    print(markdown_table(outcome.data, table_columns(outcome.data)))
    print(f"Report: {outcome.report}")
    if outcome.num_failed:
        failed = f"{outcome.num_failed} of {len(outcome.data.runs)} runs failed; the report says why"
        print(f"error: {failed}. The same command tries them again.", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_job(main)
