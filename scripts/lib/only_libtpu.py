"""A pytest plugin: of all tests those that are skipped where libtpu is missing, and not here (`scripts/test --aot`)."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = [item for item in items if _needs_libtpu(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def _needs_libtpu(item: pytest.Item) -> bool:
    marks = item.iter_markers("skipif")
    return any("libtpu" in mark.kwargs.get("reason", "") and not mark.args[0] for mark in marks)
