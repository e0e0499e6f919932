"""Which cases of a test `make test` runs: where one of each kind shows a mistake, the others are for the slow tier."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest


def is_repetition(item: pytest.Item) -> bool:
    """Whether its test is marked ``quick``, and none of the mark's patterns is that of its case.

    A case has pytest's name for it: ``llama-gqa-4`` of ``test_streaming[llama-gqa-4]``.
    """
    mark = item.get_closest_marker("quick")
    case = item.name.partition("[")[2].removesuffix("]")
    return mark is not None and not any(fnmatchcase(case, pattern) for pattern in mark.args)
