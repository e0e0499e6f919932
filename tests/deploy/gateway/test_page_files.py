"""What the gateway sends to a browser."""

from __future__ import annotations

import re
import urllib.error
import urllib.request

import pytest

from tests.deploy.server import Server

pytestmark = pytest.mark.triton


def test_a_page_of_its_own_files(server: Server) -> None:
    """Everything that it names is there, and its policy allows nothing else."""
    with urllib.request.urlopen(f"http://{server.openai_url}/") as answer:
        html, headers = answer.read().decode(), answer.headers
    assert headers.get_content_type() == "text/html"
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {source for name, source in policy.items() if name in ("script-src", "style-src", "connect-src")} == {
        "'self'"
    }
    named = re.findall(r'(?:src|href)="(page/[^"]+)"', html)
    kinds = {}
    while named:
        name = named.pop()
        with urllib.request.urlopen(f"http://{server.openai_url}/{name}") as answer:
            kinds[name] = answer.headers.get_content_type()
            assert answer.headers["content-security-policy"] == headers["content-security-policy"]
            imported = re.findall(r'from "\./(.+?)"', answer.read().decode())
        named += [f"page/{file}" for file in imported if f"page/{file}" not in kinds]
    assert set(kinds.values()) == {"text/css", "text/javascript", "image/svg+xml"}
    assert "<script>" not in html
    assert not re.search(r"https?://|style=| on\w+=", html)
    again = urllib.request.Request(f"http://{server.openai_url}/", headers={"if-none-match": headers["etag"]})
    with pytest.raises(urllib.error.HTTPError, match="304"):
        urllib.request.urlopen(again)
