"""docs/service.md has the limits of the HTTP front as they are."""

from __future__ import annotations

import re

from tests.pages import ROOT
from trtstream.deploy.http_front import limits


def test_the_documented_limits() -> None:
    page = (ROOT / "docs" / "service.md").read_text()
    section = page.partition("\n## HTTP\n")[2].partition("\n## ")[0]
    documented = dict(re.findall(r"^\| ([^|]+) \| ([\d,]+)(?: bytes)? \|", section, re.MULTILINE))
    expected = {
        "body, expanded if it is compressed (gzip, deflate)": limits.MAX_BODY_BYTES,
        "depth of the JSON": limits.MAX_JSON_DEPTH,
        "members of all objects in the JSON": limits.MAX_JSON_MEMBERS,
        "headers": limits.MAX_HEADER_BYTES,
        "seconds for the headers to arrive": limits.HEADER_SECONDS,
        "seconds for the body to arrive": limits.BODY_SECONDS,
        "seconds in which nothing of an answer is read": limits.WRITE_SECONDS,
        "seconds between two requests of a connection": limits.IDLE_SECONDS,
        "connections": limits.MAX_CONNECTIONS,
    }
    assert documented == {what: f"{number:,.0f}" for what, number in expected.items()}
