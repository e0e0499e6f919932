"""Each layer against torch, in networks that TensorRT's own builder takes."""

from __future__ import annotations

import pytest
import tensorrt_rtx as trt
import torch

from tests.tensorrt.small_network import SmallNetwork, check

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
E, U, A, R = trt.ElementWiseOperation, trt.UnaryOperation, trt.ActivationType, trt.ReduceOperation
NONE, TRANSPOSE = trt.MatrixOperation.NONE, trt.MatrixOperation.TRANSPOSE


def normal_cdf(x: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Normal(0.0, 1.0).cdf(x)


@pytest.mark.parametrize("dtype", FLOATS)
def test_arithmetic_on_floats(network: SmallNetwork, dtype: torch.dtype) -> None:
    x, y = (torch.rand(2, 3, 8) * 6 - 3).to(dtype), (torch.rand(2, 1, 8) + 0.5).to(dtype)
    x[0, 0] = y[0, 0]
    x[1, 1, :4] = torch.tensor([2.5, -3.5, 0.0, torch.inf])
    net, tensor, other = network.net, network.input("x", x, dynamic=(0,)), network.input("y", y, dynamic=(0,))
    x, y = x.double(), y.double()
    expected = {}
    for op, value in {
        E.SUM: x + y,
        E.SUB: x - y,
        E.PROD: x * y,
        E.DIV: x / y,
        E.FLOOR_DIV: (x / y).floor(),
        E.MIN: torch.where(x < y, x, y),
        E.MAX: torch.where(x > y, x, y),
        E.POW: x**y,
        E.EQUAL: x == y,
        E.LESS: x < y,
        E.GREATER: x > y,
    }.items():
        network.output(op.name, net.add_elementwise(tensor, other, op))
        expected[op.name] = value
    for op, value in {
        U.EXP: x.exp(),
        U.LOG: x.log(),
        U.SQRT: x**0.5,
        U.RECIP: 1 / x,
        U.ABS: torch.where(x < 0, -x, x),
        U.NEG: 0 - x,
        U.SIGN: (x > 0).double() - (x < 0).double(),
        U.ERF: 2 * normal_cdf(x * 2**0.5) - 1,
        U.SIN: x.sin(),
        U.COS: x.cos(),
        U.FLOOR: x.floor(),
        U.CEIL: -(-x).floor(),
        U.ROUND: x.round(),
        U.ISINF: x == torch.inf,
        U.ISNAN: x != x,
    }.items():
        network.output(op.name, net.add_unary(tensor, op))
        expected[op.name] = value
    for op, value in {
        A.RELU: torch.where(x > 0, x, 0),
        A.SIGMOID: 1 / (1 + (-x).exp()),
        A.TANH: 1 - 2 / (1 + (2 * x).exp()),
        A.GELU_ERF: x * normal_cdf(x),
        A.GELU_TANH: x / (1 + (-2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)).exp()),
    }.items():
        network.output(op.name, net.add_activation(tensor, op))
        expected[op.name] = value
    check(network, expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_sums_and_products(network: SmallNetwork, dtype: torch.dtype) -> None:
    """Reductions, softmax, matrix products and normalization, which accumulate in float32."""
    x, w = torch.randn(2, 3, 16).to(dtype), torch.randn(1, 5, 16).to(dtype)
    scale, bias = torch.rand(2, 1, 1, 16).to(dtype)
    net, tensor, weight = network.net, network.input("x", x, dynamic=(0, 1)), network.constant(w)
    ones = network.input("ones", torch.ones(1, 3001).to(dtype))
    for op in (R.SUM, R.PROD, R.MAX, R.MIN, R.AVG):
        network.output(op.name, net.add_reduce(tensor, op, 0b110, keep_dims=False))
    network.output("kept", net.add_reduce(tensor, R.AVG, 0b100, keep_dims=True))
    softmax = net.add_softmax(tensor)
    softmax.axes = 0b010
    network.output("softmax", softmax)
    network.output("matmul", net.add_matrix_multiply(tensor, NONE, weight, TRANSPOSE))
    network.output("transposed", net.add_matrix_multiply(tensor, TRANSPOSE, tensor, NONE))
    network.output("einsum", net.add_einsum([tensor, weight], "btc,noc->bto"))
    network.output("count", net.add_matrix_multiply(ones, NONE, ones, TRANSPOSE))
    norm = net.add_normalization_v2(tensor, network.constant(scale), network.constant(bias), 0b100)
    norm.epsilon = 1e-3
    network.output("norm", norm)
    x, w, scale, bias = x.double(), w.double(), scale.double(), bias.double()
    products = torch.stack([torch.stack([row @ w[0, o] for o in range(5)], dim=-1) for row in x])
    check(
        network,
        {
            "SUM": x.flatten(1).sum(1),
            "PROD": x.flatten(1).prod(1),
            "MAX": x.flatten(1).sort(1).values[:, -1],
            "MIN": x.flatten(1).sort(1).values[:, 0],
            "AVG": x.flatten(1).sum(1) / 48,
            "kept": x.sum(2, keepdim=True) / 16,
            "softmax": x.exp() / x.exp().sum(1, keepdim=True),
            "matmul": products,
            "transposed": torch.stack([row.T @ row for row in x]),
            "einsum": products,
            "count": torch.tensor([[3001.0]]),
            "norm": torch.nn.functional.layer_norm(x, [16], eps=1e-3) * scale + bias,
        },
    )


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_arithmetic_on_integers_and_bools(network: SmallNetwork, dtype: torch.dtype) -> None:
    a, b = torch.tensor([[-7, 7, 6, -6, 0]], dtype=dtype), torch.tensor([[2, -2, 3, -3, 5]], dtype=dtype)
    net, x, y = network.net, network.input("a", a, dynamic=(0,)), network.input("b", b, dynamic=(0,))
    for op in (E.SUM, E.SUB, E.PROD, E.DIV, E.FLOOR_DIV, E.MIN, E.MAX):
        network.output(op.name, net.add_elementwise(x, y, op))
    network.output("ABS", net.add_unary(x, U.ABS))
    network.output("NEG", net.add_unary(x, U.NEG))
    network.output("total", net.add_reduce(x, R.SUM, 0b10, keep_dims=True))
    less = network.output("LESS", net.add_elementwise(x, y, E.LESS))
    greater = net.add_elementwise(x, network.constant(torch.full((1, 1), 5, dtype=dtype)), E.GREATER).get_output(0)
    for op in (E.AND, E.OR, E.XOR):
        network.output(op.name, net.add_elementwise(less, greater, op))
    network.output("NOT", net.add_unary(less, U.NOT))
    network.output("select", net.add_select(less, x, network.constant(torch.full((1, 1), 9, dtype=dtype))))
    check(
        network,
        {
            "SUM": torch.tensor([[-5, 5, 9, -9, 5]], dtype=dtype),
            "SUB": torch.tensor([[-9, 9, 3, -3, -5]], dtype=dtype),
            "PROD": torch.tensor([[-14, -14, 18, 18, 0]], dtype=dtype),
            "DIV": torch.tensor([[-3, -3, 2, 2, 0]], dtype=dtype),
            "FLOOR_DIV": torch.tensor([[-4, -4, 2, 2, 0]], dtype=dtype),
            "MIN": torch.tensor([[-7, -2, 3, -6, 0]], dtype=dtype),
            "MAX": torch.tensor([[2, 7, 6, -3, 5]], dtype=dtype),
            "ABS": torch.tensor([[7, 7, 6, 6, 0]], dtype=dtype),
            "NEG": torch.tensor([[7, -7, -6, 6, 0]], dtype=dtype),
            "total": torch.tensor([[0]], dtype=dtype),
            "LESS": torch.tensor([[True, False, False, True, True]]),
            "AND": torch.tensor([[False, False, False, False, False]]),
            "OR": torch.tensor([[True, True, True, True, True]]),
            "XOR": torch.tensor([[True, True, True, True, True]]),
            "NOT": torch.tensor([[False, True, True, False, False]]),
            "select": torch.tensor([[-7, 9, 9, -6, 0]], dtype=dtype),
        },
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.int32])
def test_moving_data(network: SmallNetwork, dtype: torch.dtype) -> None:
    data, rows = torch.arange(24).view(2, 3, 4).to(dtype), torch.tensor([[2, 0], [1, 1]], dtype=torch.int32)
    net, x = network.net, network.input("x", data, dynamic=(0, 1))
    network.output("identity", net.add_identity(x))
    shape = net.add_shape(x).get_output(0)
    network.output("shape", net.add_identity(shape))
    gathered = network.output("gather", net.add_gather(x, network.input("rows", rows, dynamic=(0,)), 1))
    network.output("element", net.add_gather(shape, network.constant(torch.tensor(1)), 0))

    shuffle = net.add_shuffle(x)
    shuffle.first_transpose, shuffle.reshape_dims, shuffle.second_transpose = (0, 2, 1), (0, 2, 2, -1), (1, 0, 2, 3)
    network.output("shuffle", shuffle)
    dynamic = net.add_shuffle(x)
    count = net.add_reduce(shape, R.PROD, 0b1, keep_dims=True).get_output(0)
    dynamic.set_input(1, net.add_concatenation([network.sizes(1), count]).get_output(0))
    network.output("dynamic shuffle", dynamic)
    unsqueezed = network.output("unsqueeze", net.add_unsqueeze(x, network.sizes(0, -1)))
    network.output("squeeze", net.add_squeeze(unsqueezed, network.sizes(0)))
    network.output("squeeze all", net.add_squeeze(unsqueezed))

    network.output("slice", net.add_slice(x, (0, 2, 3), (2, 2, 2), (1, -1, -2)))
    sized = net.add_slice(x, (0, 1, 0), (0, 0, 0), (1, 1, 1))
    sized.set_input(2, net.add_elementwise(shape, network.sizes(0, 1, 2), E.SUB).get_output(0))
    network.output("dynamic slice", sized)
    padded = net.add_slice(x, (0, -1, 3), (2, 3, 2), (1, 1, 1))
    padded.mode = trt.SampleMode.FILL
    padded.set_input(4, network.constant(torch.tensor(-5).to(dtype)))
    network.output("padded slice", padded)
    joined = net.add_concatenation([x, gathered_rows(net, gathered)])
    joined.axis = 1
    network.output("concatenation", joined)
    for target in (trt.float32, trt.bfloat16, trt.int64, trt.bool):
        network.output(f"to {target.name}", net.add_cast(x, target))

    fives = torch.full((2, 1, 2), -5)
    check(
        network,
        {
            "identity": data,
            "shape": torch.tensor([2, 3, 4]),
            "gather": data[:, [[2, 0], [1, 1]]],
            "element": torch.tensor(3),
            "shuffle": data.transpose(1, 2).reshape(2, 2, 2, 3).transpose(0, 1),
            "dynamic shuffle": data.view(1, 24),
            "unsqueeze": data.view(1, 2, 3, 4, 1),
            "squeeze": data.view(2, 3, 4, 1),
            "squeeze all": data,
            "slice": torch.stack([data[:, [2, 1], 3], data[:, [2, 1], 1]], dim=-1),
            "dynamic slice": data[:, 1:, :2],
            "padded slice": torch.cat((fives, torch.stack((data[:, :2, 3], torch.full((2, 2), -5)), dim=-1)), dim=1).to(
                dtype
            ),
            "concatenation": torch.cat((data, data[:, [2, 0, 1, 1]]), dim=1),
            "to FLOAT": data.float(),
            "to BF16": data.bfloat16(),
            "to INT64": data.long(),
            "to BOOL": data != 0,
        },
    )


def gathered_rows(net: trt.INetworkDefinition, gathered: trt.ITensor) -> trt.ITensor:
    """[B, 2, 2, 4] -> [B, 4, 4]."""
    shuffle = net.add_shuffle(gathered)
    shuffle.reshape_dims = (0, -1, 4)
    return shuffle.get_output(0)


def test_casts_round_to_the_nearest_and_truncate_to_integers(network: SmallNetwork) -> None:
    x = network.input("x", torch.tensor([1.999, -1.999, 1 + 2**-9, 70000.0]))
    for target in (trt.int32, trt.float16, trt.bfloat16):
        network.output(target.name, network.net.add_cast(x, target))
    check(
        network,
        {
            "INT32": torch.tensor([1, -1, 1, 70000], dtype=torch.int32),
            "HALF": torch.tensor([1.9990234375, -1.9990234375, 1.001953125, torch.inf]),
            "BF16": torch.tensor([2.0, -2.0, 1.0, 70144.0]),
        },
        roundings=0,
    )


def test_evenly_spaced_numbers(network: SmallNetwork) -> None:
    net, x = network.net, network.input("x", torch.zeros(3, 2), dynamic=(0,))
    network.output("static", net.add_fill((4,), trt.FillOperation.LINSPACE, trt.int32))
    dynamic = net.add_fill((0, 0), trt.FillOperation.LINSPACE, trt.int64)
    dynamic.set_input(0, net.add_shape(x).get_output(0))
    dynamic.set_input(1, network.constant(torch.tensor(7)))
    dynamic.set_input(2, network.sizes(10, -1))
    network.output("dynamic", dynamic)
    halves = net.add_fill((3,), trt.FillOperation.LINSPACE, trt.float32)
    halves.alpha, halves.beta = 1.0, 0.5
    network.output("halves", halves)
    check(
        network,
        {
            "static": torch.tensor([0, 1, 2, 3], dtype=torch.int32),
            "dynamic": torch.tensor([[7, 6], [17, 16], [27, 26]]),
            "halves": torch.tensor([1.0, 1.5, 2.0]),
        },
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_quantized_constants(network: SmallNetwork, dtype: torch.dtype) -> None:
    net, numbers, small = network.net, torch.arange(-64, 64).view(4, 32), torch.arange(128).view(4, 32) % 16 - 8
    rows, blocks = (torch.rand(4) + 0.1).to(dtype), (torch.rand(4, 2) + 0.1).to(dtype)
    int8, kind = network.constant(numbers.to(torch.int8)), network.type(dtype)
    for name, scale in {"tensor": torch.tensor(0.3).to(dtype), "rows": rows}.items():
        layer = net.add_dequantize(int8, network.constant(scale), kind)
        layer.axis = 0
        network.output(name, layer)
    network.output("blocks", net.add_dequantize(network.int4(small), network.constant(blocks), kind))
    check(
        network,
        {
            "tensor": numbers * torch.tensor(0.3).to(dtype).double(),
            "rows": numbers * rows.double()[:, None],
            "blocks": torch.cat(
                (small[:, :16] * blocks.double()[:, :1], small[:, 16:] * blocks.double()[:, 1:]), dim=1
            ),
        },
    )
