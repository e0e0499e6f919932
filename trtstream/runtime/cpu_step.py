"""A step on the CPU, with short chunks of prompts too: one call of the library that was compiled for the engine."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from trtstream.plugins import cpu_structures as c
from trtstream.plugins.block_weight import BLOCK_FORMATS, BlockWeight
from trtstream.plugins.decode_plan import StepPlan
from trtstream.plugins.huge_pages import new_memory
from trtstream.plugins.quantized_weight import QuantizedWeight
from trtstream.runtime import decoder
from trtstream.runtime.cpu_weights import padded_rows
from trtstream.settings import BuildConfig, ModelConfig

# Torch reads a chunk's keys once for all of its tokens, and the library anew for each, but without torch's overheads.
CHUNK_TOKENS = 32


class LibraryStep:
    """The library with a model's weights, which stay where they are, and its memory for ``max_tokens`` tokens."""

    def __init__(
        self, library: ctypes.CDLL, model: ModelConfig, build: BuildConfig, weights: decoder.DecoderWeights
    ) -> None:
        self.max_tokens = max(build.max_batch_size, CHUNK_TOKENS)
        self._vocab_size = model.vocab_size
        self._max_sinks = build.max_sink_token_length
        self._kept: list[torch.Tensor] = []  # what the structures below point to
        self._threads = _most_threads()
        self._structure = self._describe(model, build, weights)
        library.workspace_bytes.restype = ctypes.c_int64
        self._workspace = new_memory(library.workspace_bytes(ctypes.byref(self._structure)))
        self._library = library

    def __call__(
        self, tokens: Sequence[int], cache: torch.Tensor, plan: StepPlan, wanted: Sequence[int]
    ) -> torch.Tensor:
        """Feed the tokens of the plan; float32 logits [len(wanted), vocab] after those at the indices ``wanted``.

        A session's tokens are next to each other. ``cache`` [sessions, layers, 2, kv_heads, W, head_dim], contiguous,
        is changed in place.
        """
        assert len(tokens) <= self.max_tokens
        ids, rows, logits = torch.tensor(tokens), torch.tensor(wanted), torch.empty(len(wanted), self._vocab_size)
        self._library.decode_step(
            ctypes.byref(self._structure),
            sessions(cache, plan, self._max_sinks),
            address(ids),
            address(cache),
            address(self._workspace),
            ctypes.c_int64(min(torch.get_num_threads(), self._threads)),
            address(rows),
            ctypes.c_int64(len(rows)),
            address(logits),
        )
        return logits

    def embed(self, tokens: Sequence[int]) -> torch.Tensor:
        """The tokens' embeddings, float32 [N, hidden]."""
        ids, out = torch.tensor(tokens), torch.empty(len(tokens), self._structure.hidden)
        self._library.read_rows(
            ctypes.byref(self._structure.embedding),
            address(ids),
            ctypes.c_int64(len(tokens)),
            ctypes.c_int64(self._structure.hidden),
            address(out),
        )
        return out

    def _describe(self, model: ModelConfig, build: BuildConfig, weights: decoder.DecoderWeights) -> c.Model:
        layers = (c.Layer * len(weights.layers))(*map(self._layer, weights.layers))
        head = matrix(weights.lm_head, self._kept)
        tied = weights.embedding is weights.lm_head.weight
        return c.Model(
            embedding=head if tied else matrix(decoder.Projection(weights.embedding, None), self._kept),
            head=head,
            norm=self._norm(weights.norm),
            layers=layers,
            num_layers=len(layers),
            hidden=model.hidden_size,
            intermediate=model.intermediate_size,
            is_layer_norm=model.norm == "layer",
            is_parallel=model.residual == "parallel",
            is_shared_norm=model.shared_norm,
            activation=c.ACTIVATIONS.index(model.hidden_act),
            eps=model.norm_eps,
            clip_qkv=model.clip_qkv or 0.0,
            max_rows=self.max_tokens,
            max_threads=self._threads,
        )

    def _layer(self, layer: decoder.LayerWeights) -> c.Layer:
        return c.Layer(
            self._norm(layer.attention_norm),
            self._norm(layer.mlp_norm),
            *(c.Norm() if norm is None else self._norm(norm) for norm in layer.head_norms or (None, None)),
            matrix(layer.qkv, self._kept),
            matrix(layer.attention_output, self._kept),
            matrix(layer.up, self._kept),
            matrix(layer.down, self._kept),
        )

    def _norm(self, norm: decoder.Norm) -> c.Norm:
        bias = torch.zeros_like(norm.weight) if norm.bias is None else norm.bias
        return c.Norm(_float32(norm.weight, self._kept), _float32(bias, self._kept))


def with_products(library: ctypes.CDLL, weights: decoder.DecoderWeights) -> decoder.DecoderWeights:
    """The weights with the library's products where they are in blocks, for chunks in torch, which has none."""
    memory = ProductMemory()

    def changed(projection: decoder.Projection) -> decoder.Projection:
        if not isinstance(projection.weight, BlockWeight):
            return projection
        return replace(projection, product=Product(library, projection, memory))

    layers = [
        replace(
            layer,
            qkv=changed(layer.qkv),
            attention_output=changed(layer.attention_output),
            up=changed(layer.up),
            down=changed(layer.down),
        )
        for layer in weights.layers
    ]
    return replace(weights, layers=layers, lm_head=changed(weights.lm_head))


class ProductMemory:
    """Working memory for one product at a time, which grows as needed."""

    def __init__(self) -> None:
        self._memory = new_memory(0)

    def take(self, nbytes: int) -> torch.Tensor:
        if nbytes > len(self._memory):
            self._memory = new_memory(nbytes)
        return self._memory


class Product:
    """A projection's product with tokens x [N, in] -> [N, out], in x's dtype."""

    def __init__(self, library: ctypes.CDLL, projection: decoder.Projection, memory: ProductMemory) -> None:
        self._kept: list[torch.Tensor] = []
        self._matrix = matrix(projection, self._kept)
        self._memory = memory
        library.product_bytes.restype = ctypes.c_int64
        self._library = library

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        batch, columns = ctypes.c_int64(len(x)), self._matrix.columns
        threads = ctypes.c_int64(torch.get_num_threads())
        padded = F.pad(x.float(), (0, columns - x.shape[1])).contiguous()
        workspace = self._memory.take(self._library.product_bytes(ctypes.c_int64(columns), batch, threads))
        out = torch.empty(len(x), self._matrix.rows)
        self._library.multiply(
            ctypes.byref(self._matrix), address(padded), batch, address(workspace), threads, address(out)
        )
        return out.to(x.dtype)


def matrix(projection: decoder.Projection, kept: list[torch.Tensor]) -> c.Matrix:
    """The structure of a projection. It points to tensors, which are added to ``kept``."""
    weight = projection.weight
    assert not isinstance(weight, QuantizedWeight), "the cpu target has no such format"
    if isinstance(weight, BlockWeight):
        stored, name = weight.blocks, weight.format
        columns = stored.shape[1] // BLOCK_FORMATS[name].block_bytes * c.COLUMNS
    else:
        stored, name = padded_rows(weight), str(weight.dtype).removeprefix("torch.")
        columns = stored.stride(0)
    kept.append(stored)
    return c.Matrix(
        weights=stored.data_ptr(),
        bias=_float32(projection.bias, kept),
        rows=len(stored),
        columns=columns,
        row_bytes=stored.stride(0) * stored.element_size(),
        format=c.FORMATS[name],
    )


def _float32(vector: torch.Tensor | None, kept: list[torch.Tensor]) -> int | None:
    if vector is None:
        return None
    kept.append(vector.float().contiguous())
    return kept[-1].data_ptr()


def _most_threads() -> int:
    """Working memory is for this many, whatever torch's number of threads becomes."""
    return max(len(os.sched_getaffinity(0)), torch.get_num_threads())


def sessions(cache: torch.Tensor, plan: StepPlan, max_sinks: int) -> object:
    """A reference to the structure of a step's sessions, which lie in the first dimension of ``cache``."""
    rotation, slopes = address(plan.rotation), address(plan.slopes)
    sizes = (len(plan.rows), cache.stride(0), cache.shape[-2], max_sinks)
    return ctypes.byref(c.Sessions(address(plan.rows), rotation, slopes, *sizes))


def address(tensor: torch.Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())
