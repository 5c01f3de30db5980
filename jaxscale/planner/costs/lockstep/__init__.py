"""Pipelines as our own runtime goes through them: all stages in step, tick by tick (`parallel.pipeline`)."""
