"""``trtstream smoke``: does a served model do all that it promises? Every check asks the real server."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from trtstream.deploy.client.connect import connect, service_options
from trtstream.deploy.client.judges import CheckFailed
from trtstream.deploy.client.triton import Check, ServedModel, TritonClient
from trtstream.errors import TrtstreamError
from trtstream.tables import print_table


@dataclass(frozen=True)
class CheckResult:
    """One row of the report: ``detail`` is what was measured or, if it failed, what was expected and found.

    ``passed`` is None where the service is of a kind that the check does not apply to; ``detail`` says why.
    """

    name: str
    passed: bool | None
    detail: str


def run_check(name: str, check: Check | str, client: TritonClient, model: ServedModel) -> CheckResult:
    if isinstance(check, str):
        return CheckResult(name, None, check)
    try:
        return CheckResult(name, True, check(client, model))
    except (CheckFailed, TrtstreamError) as error:
        return CheckResult(name, False, str(error))


@click.command()
@service_options
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def smoke(url: str, model_name: str, tls_ca: Path | None, as_json: bool) -> None:
    """Check a served model from the client side; exit 1 if any check fails."""
    from rich.console import Console

    results: list[CheckResult] = []
    in_terminal = sys.stdout.isatty()
    with connect(url, model_name, tls_ca) as client, Console(stderr=True).status("") as status:
        model, model_name = client.model(), client.model_name
        for name, check in client.checks.items():
            status.update(f"checking: {name}")
            results.append(run_check(name, check, client, model))
            if not (as_json or in_terminal):
                click.echo(plain_line(results[-1]))
    passed = not any(result.passed is False for result in results)
    if as_json:
        report = {"url": url, "model_name": model_name, "passed": passed}
        click.echo(json.dumps({**report, "checks": [asdict(result) for result in results]}, indent=2))
    elif in_terminal:
        print_results(results)
    sys.exit(0 if passed else 1)


VERDICTS = {True: ("ok", "green"), False: ("FAILED", "bold red"), None: ("n/a", "dim")}


def plain_line(result: CheckResult) -> str:
    return f"{VERDICTS[result.passed][0]:<7}{result.name:<20}{result.detail}"


def print_results(results: Sequence[CheckResult]) -> None:
    from rich.text import Text

    rows = [(result.name, Text(*VERDICTS[result.passed]), Text(result.detail)) for result in results]
    print_table(("check", "", "measured"), rows, left=3)
