"""Clients, server, config.pbtxt and docs have the same tensors and error codes, from one table."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtstream.deploy.contract import format_error, parse_error, to_array
from trtstream.deploy.serving.triton_request import Delivery, parse_turn
from trtstream.deploy.serving.triton_response import error_message, response_tensors
from trtstream.errors import TrtstreamError
from trtstream.runtime.request_fields import ERROR_CODES, INPUTS, OUTPUTS, Field
from trtstream.runtime.requests import TurnOutput, TurnRequest

ROOT = Path(__file__).parents[2]
NOT_OF_A_TURN = {"stream", "return_num_input_tokens", "return_num_output_tokens"}
TRITONS_OWN = {"session_start", "timeout", "request_id"}
"""Fields of a turn that Triton has its own names for, and no tensors."""

VALUES: dict[str, Any] = {"BOOL": True, "BYTES": "größer", "FP32": 0.5, "INT32": 7, "UINT64": 2**64 - 1}


def names(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_every_field_has_its_tensor() -> None:
    assert {field.attribute for field in INPUTS.values()} - NOT_OF_A_TURN == names(TurnRequest) - TRITONS_OWN
    assert {field.attribute for field in OUTPUTS.values()} == names(TurnOutput)


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_arrives(name: str) -> None:
    field = INPUTS[name]
    value = VALUES[field.datatype]
    value = (value, value) if field.vector else value
    turn, delivery = parse_turn({name: to_array(value, field.datatype)})
    assert turn == TurnRequest(**({} if name in NOT_OF_A_TURN else {field.attribute: value}))
    assert delivery == Delivery(stream=name == "stream", counts_apart=name == "return_num_output_tokens")


def test_outputs_of_a_turn_in_one_response() -> None:
    last = TurnOutput("b", (), (), "stop", 3, 3, 5, "ab12", (1,), (1, 0, 9))
    outputs = [TurnOutput("ö", (1, 2), (-0.5, -1.0), "", 3, 2, 4, byte_counts=(2,)), last]
    tensors = response_tensors(outputs)
    assert {name: array.tolist() for name, array in tensors.items()} == {
        "text_output": [["öb".encode()]],
        "output_ids": [[1, 2]],
        "output_log_probs": [[-0.5, -1.0]],
        "finish_reason": [[b"stop"]],
        "num_input_tokens": [[3]],
        "num_output_tokens": [[3]],
        "session_tokens": [[5]],
        "turn_id": [[b"ab12"]],
        "output_byte_counts": [[2, 1]],
        "recalled": [[1, 0, 9]],
    }
    assert tensors["output_ids"].dtype == np.int32
    assert response_tensors(outputs[1:])["output_log_probs"].dtype == np.float32
    assert response_tensors(outputs, counts_apart=True)["num_output_tokens"].tolist() == [[2]]


def test_errors_arrive_with_their_code() -> None:
    for code in ERROR_CODES:
        assert parse_error(format_error(code, "", "no [busy] here")) == (code, "no [busy] here")
    assert format_error("busy", "r1", "wait") == "[busy] r1: wait"
    assert parse_error("in ensemble 'ensemble', [request id: 7] [too_long] it is long") == ("too_long", "it is long")
    assert parse_error("[request id: r1] unexpected inference input 'x'") == (
        None,
        "[request id: r1] unexpected inference input 'x'",
    )


def test_which_code_an_error_has(caplog: pytest.LogCaptureFixture) -> None:
    assert error_message("", TrtstreamError("top_k is -1")) == "[invalid] top_k is -1"
    assert error_message("r1", TrtstreamError("later", code="busy")) == "[busy] r1: later"
    assert not caplog.records
    assert error_message("r1", ZeroDivisionError("oh")) == "[internal] r1: the model failed: ZeroDivisionError: oh"
    assert "ZeroDivisionError" in caplog.text


def fields_table(title: str, fields: Mapping[str, Field]) -> list[str]:
    rows = [f"| {title} | datatype | shape | meaning | limits |", "| --- | --- | --- | --- | --- |"]
    for name, field in fields.items():
        limits = f" a number {field.limits}" if field.limits else ""
        shape = "[1, N]" if field.vector else "[1, 1]"
        rows.append(f"| `{name}` | {field.datatype} | {shape} | {field.meaning} |{limits} |")
    return rows


def codes_table() -> list[str]:
    rows = (f"| `{name}` | {code.status:d} | {code.meaning} |" for name, code in ERROR_CODES.items())
    return ["| code | HTTP status | meaning |", "| --- | --- | --- |", *rows]


@pytest.mark.parametrize("table", [fields_table("input", INPUTS), fields_table("output", OUTPUTS), codes_table()])
def test_the_page_of_the_service_has_the_tables(table: list[str]) -> None:
    lines = (ROOT / "docs" / "service.md").read_text().splitlines()
    start = lines.index(table[0])
    assert lines[start : lines.index("", start)] == table


def test_the_readme_names_every_input_and_output() -> None:
    page = (ROOT / "README.md").read_text()
    table = page[page.index("| input | meaning |") :].partition("\n\n")[0]
    named = re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in table.splitlines()))
    assert sorted(named) == sorted(INPUTS.keys() - {"chat", "return_log_probs"} - NOT_OF_A_TURN)
    outputs = page[page.index("\nOutputs: ") :].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", outputs)) == OUTPUTS.keys() | {"stop", "length", "cancelled"}


def test_clients_bring_neither_torch_nor_transformers() -> None:
    code = """
import sys
import tritonclient.grpc
from trtstream.deploy.client import bench, chat, smoke
client = smoke.connect.__globals__["Client"]("127.0.0.1:1")
print([name for name in ("torch", "transformers", "pytriton", "safetensors") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
