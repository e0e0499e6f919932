from __future__ import annotations

import pytest


@pytest.mark.quick("first", "[s-u]ec*")
@pytest.mark.parametrize("case", ["first", "second", "third"])
def test_cases_that_no_pattern_names_are_slow(case: str, request: pytest.FixtureRequest) -> None:
    assert (request.node.get_closest_marker("slow") is not None) == (case == "third")
