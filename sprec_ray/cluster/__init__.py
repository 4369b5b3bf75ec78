"""The only package that imports Ray: engines, stages, runs, studies, each over the one before."""
