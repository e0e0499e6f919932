"""Least recently used: a cache of W tokens from which the token leaves that was not attended to for the longest time.

Each layer keeps tokens of its own, the same in all its heads. At a step, a token that a layer keeps is *used* if the
layer's heads give it on average at least its even share of their attention, 1 / n where the layer sees n tokens; a new
token is used when it comes. When a layer has W tokens and another one comes, the one leaves whose last use is longest
ago, and of several the oldest. Positions are those inside the cache, as in streaming attention: the tokens that a layer
keeps count 0, 1, 2, ... in the order of the text. Below W tokens this is dense attention.

Which tokens stay depends on every step before, so tokens are computed one by one, and all keys are rotated again at
every step: several times as slow as streaming attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trtstream.plugins.decode_plan import Step
from trtstream.plugins.kv_cache import new_cache
from trtstream.plugins.positions import PositionEncoding, rotate
from trtstream.runtime.decoder import DecoderWeights, decode_layers, logits
from trtstream.settings import BuildConfig, ModelConfig


class LruBackend:
    """One session. See `trtstream.runtime.backend.Backend` for the methods.

    The cache holds keys that are not rotated, and does not say which tokens they are of: a session cannot be exported.
    """

    spare_slots = 0

    def __init__(self, model: ModelConfig, build: BuildConfig, weights: DecoderWeights) -> None:
        self._model, self._weights = model, weights
        device = weights.float_embedding.device
        self._positions = PositionEncoding.of(model).to(device)
        self._cache = new_cache(model, build, "cpu", device)
        slots = self._cache.shape[-2]
        self._numbers = torch.zeros(model.num_hidden_layers, slots, dtype=torch.int64, device=device)
        self._last_uses = torch.zeros_like(self._numbers)

    def decode(self, steps: Sequence[Step], tokens: Sequence[int]) -> torch.Tensor:
        return torch.cat([self.prefill(step, [token], 1) for step, token in zip(steps, tokens, strict=True)])

    def prefill(self, first: Step, tokens: Sequence[int], num_logits: int) -> torch.Tensor:
        hidden = [self._hidden(first.t + i, token) for i, token in enumerate(tokens)]
        last = torch.cat(hidden[len(tokens) - num_logits :]) if num_logits else hidden[0][:0]
        return logits(last, self._weights, self._model).float()

    def session_cache(self, lane: int) -> torch.Tensor:
        return self._cache[lane]

    def _hidden(self, t: int, token: int) -> torch.Tensor:
        """Hidden states [1, hidden] of token number t after all layers."""

        def attention(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            return self._attend(layer, t, qkv)

        embedded = self._weights.float_embedding[torch.tensor([token], device=self._cache.device)]
        return decode_layers(embedded, self._weights, self._model, attention)

    def _attend(self, layer: int, t: int, qkv: torch.Tensor) -> torch.Tensor:
        """Write token number t into a layer's cache and attend; qkv [1, width] -> [1, heads * head_dim]."""
        model, cache = self._model, self._cache[0, layer]
        heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
        q, k, v = qkv.view(-1, model.head_dim).split((heads, kv_heads, kv_heads))
        count = min(t + 1, cache.shape[2])
        numbers, last_uses = self._numbers[layer, :count], self._last_uses[layer, :count]
        slot = torch.tensor(t) if t < cache.shape[2] else (last_uses * (t + 1) + numbers).argmin()
        cache[:, :, slot] = torch.stack((k, v))
        numbers[slot], last_uses[slot] = t, t

        places = numbers.argsort().argsort()
        keys, values = cache[:, :, :count].float()
        query = q.float()
        own, theirs = (self._positions.rotation(at) for at in (places[slot], places))
        if own is not None and theirs is not None:
            query, keys = rotate(query, *own), rotate(keys, *theirs)
        query = query.unflatten(0, (kv_heads, -1)) * model.head_dim**-0.5
        scores = (query @ keys.transpose(1, 2)).flatten(0, 1)  # [heads, count]
        if self._positions.slopes is not None:
            scores = scores - self._positions.slopes[:, None] * (count - 1 - places)
        weights = scores.softmax(dim=-1)
        last_uses[weights.mean(dim=0) >= 1 / count] = t
        out = weights.unflatten(0, (kv_heads, -1)) @ values
        return out.flatten().to(qkv.dtype)[None]
