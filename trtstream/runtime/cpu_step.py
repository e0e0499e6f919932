"""Steps and chunks on the CPU: each is one call of the library that was compiled for the engine."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

import torch

from trtstream.plugins import cpu_structures as c
from trtstream.plugins.block_weight import BLOCK_FORMATS, BlockWeight
from trtstream.plugins.decode_plan import StepPlan
from trtstream.plugins.huge_pages import new_memory
from trtstream.plugins.quantized_weight import QuantizedWeight
from trtstream.runtime import decoder
from trtstream.runtime.cpu_weights import padded_rows
from trtstream.settings import BuildConfig, ModelConfig

# A step reads the keys again for each token of a chunk, but it also takes the tokens of other sessions.
CHUNK_TOKENS = 32


class LibraryStep:
    """The library with a model's weights, which stay where they are.

    Its memory is for steps of ``max_tokens`` tokens, and for chunks of ``max_num_tokens``.
    """

    def __init__(
        self, library: ctypes.CDLL, model: ModelConfig, build: BuildConfig, weights: decoder.DecoderWeights
    ) -> None:
        self.max_tokens = max(build.max_batch_size, CHUNK_TOKENS)
        self._vocab_size = model.vocab_size
        self._max_sinks = build.max_sink_token_length
        self._kept: list[torch.Tensor] = []  # what the structures below point to
        self._threads = _most_threads()
        self._structure = self._describe(model, build, weights)
        library.workspace_bytes.restype = library.chunk_bytes.restype = ctypes.c_int64
        self._workspace = new_memory(library.workspace_bytes(ctypes.byref(self._structure)))
        self._chunk_workspace = new_memory(library.chunk_bytes(ctypes.byref(self._structure)))
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

    def chunk(self, tokens: Sequence[int], cache: torch.Tensor, plan: StepPlan, num_logits: int) -> torch.Tensor:
        """Feed at most ``max_num_tokens`` tokens to one session; logits [num_logits, vocab] after the last ones."""
        assert len(tokens) <= self._structure.max_chunk
        ids, logits = torch.tensor(tokens), torch.empty(num_logits, self._vocab_size)
        self._library.feed_chunk(
            ctypes.byref(self._structure),
            sessions(cache, plan, self._max_sinks),
            address(ids),
            address(cache),
            address(self._chunk_workspace),
            ctypes.c_int64(min(torch.get_num_threads(), self._threads)),
            ctypes.c_int64(num_logits),
            address(logits),
        )
        return logits

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
            max_chunk=build.max_num_tokens,
            width=build.max_attention_window,
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
