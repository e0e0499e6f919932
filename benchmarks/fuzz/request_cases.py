"""Random requests, most of them malformed or extreme, in the forms of both protocols."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from benchmarks.fuzz.json_edits import edit_text, edit_values
from trtstream.deploy.contract import DTYPES
from trtstream.runtime.request_fields import INPUTS

KEYS = ("a", "b", "c", "", "x" * 256, "x" * 257, "k\n\x1b[31m", "\0", "\ud800")
TEXTS = (
    *("Hi", "Hi", "How are you?", "", " ", "a\nb\x1b[31m", "\0", "\ud800", "é\u2028\u202e😀", "<user>x</s>", "{{ 1 }}"),
    *("x" * 300, "x" * 5000),
)
NUMBERS: dict[str, tuple[Any, ...]] = {
    "BOOL": (True, False),
    "INT32": (0, 1, 2, 5, -1, 127, 128, 2**31 - 1, -(2**31), 1 << 20),
    "UINT64": (0, 1, 2**63, 2**64 - 1),
    "FP32": (0.0, 0.5, 1.0, 1.5, -1.0, float("nan"), float("inf"), -float("inf"), 1e-45, 3e38),
}
PARAMETERS: dict[str, tuple[Any, ...]] = {
    "sequence_id": (0, 7, 2**63 - 1, -1, "", "s", True, 1.5, None),
    "sequence_start": (True, False, 1, "true"),
    "sequence_end": (True, False, 0),
    "timeout": (0, 1, 10**6, -1, 2**63 - 1, "soon", True),
    "id": ("r", "", "a\nb", "\ud800", 5),
    "trtstream-request": ("x", 5),
    "foo\n\x1b": (1, "x"),
    "\ud800": (1, "x"),
    "max_tokns": (5,),
}
LONG = (
    ("text_input", "x" * ((1 << 22) + 1)),
    ("text_input", "x" * (1 << 20)),
    ("text_input", "x" * ((1 << 20) + 1)),
    ("system", "é" * (1 << 20)),
)
OTHER_SHAPES: tuple[tuple[int, ...], ...] = ((1, 0), (1, 2), (2, 1), (1,), (1, 1, 1), (), (3,), (-1,), (2**62,))


@dataclass
class Tensor:
    """An input as it is sent: its shape and datatype may have nothing to do with its values."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: list[Any]


@dataclass
class Case:
    """One request: tensors (two may have the same name) and Triton's parameters."""

    tensors: list[Tensor]
    parameters: dict[str, Any] = field(default_factory=dict)

    def json(self, random: Random) -> bytes:
        """The body of `generate`: sometimes with wrong kinds of values, sometimes no JSON."""
        body: dict[str, Any] = {}
        for tensor in self.tensors:
            body[tensor.name] = tensor.values if tensor.shape != (1, 1) else tensor.values[0]
        body |= self.parameters
        if random.random() < 0.2 and body:
            edit_values(random, body)
        text = json.dumps(body, ensure_ascii=random.random() < 0.5).encode(errors="surrogatepass")
        return edit_text(random, text) if random.random() < 0.1 else text

    def infer_json(self, random: Random) -> bytes:
        """The body of `infer`."""
        inputs = [vars(tensor) | {"data": tensor.values} for tensor in self.tensors]
        for one in inputs:
            one["shape"] = list(one.pop("shape"))
            del one["values"]
        body: dict[str, Any] = {"inputs": inputs, "parameters": self.parameters}
        if random.random() < 0.4:
            edit_values(random, body)
        return json.dumps(body).encode()


def as_bytes(text: str) -> bytes:
    """UTF-8, and bytes that are not for lone surrogates."""
    return text.encode(errors="surrogatepass")


def make_case(random: Random) -> Case:
    """A request of one thing after the other that may be wrong."""
    case = Case([_tensor(random, "text_input", "Hi"), _tensor(random, "max_tokens", 4)])
    if random.random() < 0.3:
        case.tensors[0] = _tensor(
            random, "input_ids", [random.choice((1, 5, 127, 128, -1, 2**31 - 1)) for _ in range(3)]
        )
    for _ in range(random.choice((0, 1, 1, 2, 2, 3, 5))):
        random.choice((_set, _set, _set, _set, _session, _session, _parameter, _drop, _repeat, _misshape, _many))(
            random, case
        )
    if random.random() < 0.005:
        case.tensors.append(_tensor(random, *random.choice(LONG)))
        case.parameters["timeout"] = 10**6  # microseconds: a prompt of a million tokens takes longer
    return case


def _tensor(random: Random, name: str, value: Any) -> Tensor:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return Tensor(name, INPUTS[name].datatype, (1, len(values)), values)


def _value(random: Random, datatype: str) -> Any:
    return random.choice(NUMBERS.get(datatype, TEXTS))


def _set(random: Random, case: Case) -> None:
    """One more field, with a value that may be beyond its limits."""
    name = random.choice(sorted(INPUTS))
    values = [_value(random, INPUTS[name].datatype) for _ in range(random.choice((1, 2)) if INPUTS[name].vector else 1)]
    case.tensors = [tensor for tensor in case.tensors if tensor.name != name] + [_tensor(random, name, values)]


def _session(random: Random, case: Case) -> None:
    """Fields of a session that may contradict each other."""
    fields = {"session_id": KEYS, "session_end": (True,), "session_tokens": (0, 3, 2**31 - 1), "chat": (True,)}
    fields["system"] = TEXTS
    for name in random.sample(sorted(fields), random.choice((1, 2, 3))):
        case.tensors = [tensor for tensor in case.tensors if tensor.name != name]
        case.tensors.append(_tensor(random, name, random.choice(fields[name])))
    if random.random() < 0.3:
        _parameter(random, case)


def _parameter(random: Random, case: Case) -> None:
    name = random.choice(sorted(PARAMETERS))
    case.parameters[name] = random.choice(PARAMETERS[name])


def _drop(random: Random, case: Case) -> None:
    case.tensors = [tensor for tensor in case.tensors if tensor.name not in ("text_input", "input_ids")]


def _repeat(random: Random, case: Case) -> None:
    """A tensor twice, or one that the model does not have."""
    if case.tensors:
        tensor = random.choice(case.tensors)
        name = random.choice((tensor.name, "x\ny\x1b[31m", "", "x" * 500))
        case.tensors.append(Tensor(name, tensor.datatype, tensor.shape, tensor.values))


def _misshape(random: Random, case: Case) -> None:
    """Another shape or datatype than the values have."""
    if case.tensors:
        tensor = random.choice(case.tensors)
        if random.random() < 0.7:
            tensor.shape = random.choice(OTHER_SHAPES)
            size = int(np.prod(tensor.shape)) if tensor.shape != (2**62,) else 1
            if random.random() < 0.8 and size >= 0:
                tensor.values = [_value(random, tensor.datatype) for _ in range(size)]
        else:
            tensor.datatype = random.choice((*DTYPES, "FP64", "INT64", "", "BYTES"))


def _many(random: Random, case: Case) -> None:
    """More stop words, or token ids, than are allowed."""
    count = random.choice((0, 32, 33, 1000))
    if random.random() < 0.7:
        words = [random.choice(("x", "x" * 256, "x" * 257, "", "\0")) for _ in range(count)]
        case.tensors.append(_tensor(random, "stop_words", words))
    else:
        case.tensors = [tensor for tensor in case.tensors if tensor.name != "text_input"]
        case.tensors.append(_tensor(random, "input_ids", [1] * random.choice((count, (1 << 20) + 1))))
        case.parameters["timeout"] = 10**6  # microseconds, for one fewer, which are allowed
