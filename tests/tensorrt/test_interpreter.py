"""The interpreter's walk through a network: order, names, types, shapes and refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tensorrt_rtx as trt
import torch

from tests.tensorrt.interpreter import Interpreter
from tests.tensorrt.small_network import SmallNetwork, check

SUM, LINEAR = trt.ElementWiseOperation.SUM, trt.KVCacheMode.LINEAR


def cache_inputs(network: SmallNetwork, batch: int = 2, tokens: int = 3) -> list[trt.ITensor]:
    """Inputs cache [batch, 1, 8, 4], update of ``tokens`` tokens, and write indices 0."""
    return [
        network.input("cache", torch.zeros(batch, 1, 8, 4), (0,)),
        network.input("update", torch.ones(batch, 1, tokens, 4), (0, 2)),
        network.input("write", torch.zeros(batch, dtype=torch.int32), (0,)),
    ]


def test_a_layer_waits_for_one_that_was_added_later(network: SmallNetwork) -> None:
    net, x = network.net, network.input("x", torch.tensor([3.0]))
    first = net.add_elementwise(x, x, SUM)
    later = net.add_unary(x, trt.UnaryOperation.NEG)
    first.set_input(1, net.add_elementwise(later.get_output(0), later.get_output(0), SUM).get_output(0))
    network.output("out", first)
    check(network, {"out": torch.tensor([-3.0])})


def test_a_network_runs_again_with_other_tensors(network: SmallNetwork) -> None:
    x = network.input("x", torch.zeros(2, 3), (0, 1))
    network.output("out", network.net.add_elementwise(x, network.constant(torch.ones(1, 1)), SUM))
    interpreter = Interpreter(trt, network.net)
    for shape in ((2, 3), (1, 5), (4, 1)):
        assert torch.equal(interpreter.run({"x": torch.ones(shape)})["out"], torch.full(shape, 2.0))


def test_a_tensor_that_is_an_output_is_still_read(network: SmallNetwork) -> None:
    x = network.input("x", torch.tensor([3.0]))
    doubled = network.output("doubled", network.net.add_elementwise(x, x, SUM))
    network.output("out", network.net.add_elementwise(doubled, doubled, SUM))
    check(network, {"doubled": torch.tensor([6.0]), "out": torch.tensor([12.0])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("a"), r"missing inputs \['a'\]"),
        (lambda tensors: tensors.update(c=torch.ones(1)), r"unknown inputs \['c'\]"),
        (lambda tensors: tensors.update(a=torch.ones(2, 4)), r"a is torch.float32 \(2, 4\), not .* \(-1, 3\)"),
        (lambda tensors: tensors.update(a=torch.ones(2, 3, 1)), "a is torch.float32"),
        (lambda tensors: tensors.update(a=torch.ones(2, 3).half()), "a is torch.float16"),
        (lambda tensors: tensors.update(a=torch.ones(4, 3)), "b has batch 2, but a has 4"),
        (lambda tensors: tensors.update(c=torch.ones(2, 5)), "c has tokens 5, but b has 6"),
    ],
)
def test_tensors_that_do_not_fit_are_named(network: SmallNetwork, change: Callable[[dict], None], message: str) -> None:
    a = network.input("a", torch.ones(2, 3), (0,))
    for name in ("b", "c")[: 2 if "tokens" in message else 1]:
        network.input(name, torch.ones(2, 6), (0, 1)).set_dimension_name(1, "tokens")
    network.output("out", network.net.add_elementwise(a, a, SUM))
    network.run()
    change(network.tensors)
    with pytest.raises(ValueError, match=message):
        network.run()


def mixed_types(network: SmallNetwork) -> None:
    x, y = (network.input(name, torch.ones(2).to(dtype)) for name, dtype in (("x", torch.half), ("y", torch.float)))
    network.output("out", network.net.add_elementwise(x, y, SUM))


def ranks_that_differ(network: SmallNetwork) -> None:
    x, y = network.input("x", torch.ones(2, 3)), network.input("y", torch.ones(3))
    network.output("out", network.net.add_elementwise(x, y, SUM))


def unknown_layer(network: SmallNetwork) -> None:
    x = network.input("x", torch.ones(2, 4))
    network.output("out", network.net.add_topk(x, trt.TopKOperation.MAX, 1, 0b10))


def row_that_is_not_there(network: SmallNetwork) -> None:
    x, rows = network.input("x", torch.ones(2, 4)), network.input("rows", torch.tensor([0, 2], dtype=torch.int32))
    network.output("out", network.net.add_gather(x, rows, 0))


def slice_beyond_the_end(network: SmallNetwork) -> None:
    x = network.input("x", torch.ones(3), (0,))
    network.output("out", network.net.add_slice(x, (1,), (3,), (1,)))


def mask_of_another_type(network: SmallNetwork) -> None:
    q = network.input("q", torch.ones(1, 1, 2, 16).half())
    attention = network.net.add_attention_v2(q, q, q, trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE)
    attention.mask = network.input("mask", torch.zeros(1, 1, 2, 2))
    network.output("out", attention)


def write_beyond_the_end(network: SmallNetwork) -> None:
    network.output("out", network.net.add_kv_cache_update(*cache_inputs(network), LINEAR))
    network.tensors["write"] = torch.tensor([5, 6], dtype=torch.int32)


def write_before_the_start(network: SmallNetwork) -> None:
    write_beyond_the_end(network)
    network.tensors["write"] = torch.tensor([-1, 0], dtype=torch.int32)


def update_of_another_batch(network: SmallNetwork) -> None:
    cache, update, write = cache_inputs(network)
    row = network.net.add_slice(update, (0, 0, 0, 0), (1, 1, 3, 4), (1, 1, 1, 1)).get_output(0)
    network.output("out", network.net.add_kv_cache_update(cache, row, write, LINEAR))


def second_update(network: SmallNetwork) -> None:
    inputs = cache_inputs(network)
    network.output("out", network.net.add_kv_cache_update(*inputs, LINEAR))
    network.output("again", network.net.add_kv_cache_update(*inputs, LINEAR))


def cache_that_is_computed(network: SmallNetwork) -> None:
    cache, update, write = cache_inputs(network)
    copy = network.net.add_identity(cache).get_output(0)
    network.output("out", network.net.add_kv_cache_update(copy, update, write, LINEAR))


def cache_that_is_not_bound(network: SmallNetwork) -> None:
    layer = network.net.add_kv_cache_update(*cache_inputs(network), LINEAR)
    network.output("out", network.net.add_identity(layer.get_output(0)))


def read_beside_the_update(network: SmallNetwork) -> None:
    cache, update, write = cache_inputs(network)
    network.output("out", network.net.add_kv_cache_update(cache, update, write, LINEAR))
    network.output("old", network.net.add_unary(cache, trt.UnaryOperation.NEG))


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (mixed_types, "ELEMENTWISE .*: takes one type of .*, not float16, float32"),
        (ranks_that_differ, r"ELEMENTWISE .*: takes tensors of one rank, not of shapes \(2, 3\), \(3,\)"),
        (mask_of_another_type, "ATTENTION_INPUT .*: takes one type of .*, not float16, float16, float16, float32"),
        (update_of_another_batch, r"KV_CACHE_UPDATE .*: update \(1, 1, 3, 4\) .* do not fit the cache \(2, 1, 8, 4\)"),
        (second_update, "KV_CACHE_UPDATE .*: its cache 'cache' is updated by KV_CACHE_UPDATE .* already"),
        (cache_that_is_computed, "KV_CACHE_UPDATE .*: its cache .* is not a network input"),
        (cache_that_is_not_bound, "KV_CACHE_UPDATE .*: its output is not a network output"),
    ],
)
def test_what_tensorrt_refuses(network: SmallNetwork, fill: Callable[[SmallNetwork], None], message: str) -> None:
    fill(network)
    assert not network.builds()
    with pytest.raises(ValueError, match=message):
        network.run()


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (row_that_is_not_there, "GATHER .*: indices 0 to 2 do not fit a dimension of 2"),
        (slice_beyond_the_end, "SLICE .*: indices 1 to 3 do not fit a dimension of 3"),
        (write_beyond_the_end, "KV_CACHE_UPDATE .*: indices 5 to 8 do not fit a dimension of 8"),
        (write_before_the_start, "KV_CACHE_UPDATE .*: indices -1 to 2 do not fit a dimension of 8"),
        (read_beside_the_update, "UNARY .*: reads 'cache' as well as its update"),
        (unknown_layer, "TOPK .*: this type of layer is not known"),
    ],
)
def test_what_tensorrt_leaves_undefined_or_is_not_known_here(
    network: SmallNetwork, fill: Callable[[SmallNetwork], None], message: str
) -> None:
    fill(network)
    with pytest.raises(ValueError, match=message):
        network.run()


def test_a_refused_write_leaves_the_cache_as_it_was(network: SmallNetwork) -> None:
    write_beyond_the_end(network)
    with pytest.raises(ValueError, match="do not fit"):
        network.run()
    assert not network.tensors["cache"].any()
