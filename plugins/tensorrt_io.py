"""Inputs and outputs of our TensorRT networks: the contract between the build, which defines them, and the runtime.

One call feeds T tokens to each of B sessions (decode: T = 1; prefill: B = 1) and returns the logits of some of them. It
writes their keys and values to the caches first and attends afterwards, so a ring has at least T - 1 spare slots. It
writes to contiguous slots: `chunk_lengths` says where a chunk has to be cut.

Inputs, with C the slots of `trtstream.plugins.kv_cache.cache_slots` and D = head_dim:

* ``tokens`` int32 [B, T]: token ids.
* ``write_slots`` int32 [B]: the slot of each session's first token; the others follow it.
* ``rows`` int32 [B, 3]: S, its sinks; the ring slot (0 to M - 1) of its newest ring token once this call has written;
  how many ring slots hold one of its tokens after that.
* ``queries`` int32 [B, T, 2]: p(t), the token's position inside the cache; how many tokens of this call follow it.
* ``rotation`` float32 [B, T, 4, D / 2], absent with ALiBi: cos t, sin t, cos p(t), sin p(t). It is an input
  because its angles need float64, which TensorRT does not have.
* ``logits_rows`` int32 [N]: the rows, of B * T tokens, whose logits are returned.
* ``keys.i`` and ``values.i`` [B, kv_heads, C, D] in the engine's dtype, for each layer i: the sessions' caches.

Outputs: ``logits`` float32 [N, vocab]; ``keys.i.updated`` and ``values.i.updated``, which must be bound to the memory
of ``keys.i`` and ``values.i``. Sessions that take no part in a decode step write to the last slot of their cache.
"""

from __future__ import annotations

from trtstream.plugins.decode_plan import Step
from trtstream.plugins.kv_cache import cache_slots
from trtstream.plugins.window import Window
from trtstream.settings import BuildConfig, ModelConfig

TOKENS = "tokens"
WRITE_SLOTS = "write_slots"
ROWS = "rows"
QUERIES = "queries"
ROTATION = "rotation"
LOGITS_ROWS = "logits_rows"
LOGITS = "logits"

DECODE, PREFILL, SCORE = "decode", "prefill", "score"
PROFILES = (DECODE, PREFILL, SCORE)
"""The optimization profiles, in their order: sizes are in `largest_call`."""


def cache_names(model: ModelConfig) -> list[tuple[str, str]]:
    """Names of the caches: keys and values of each layer."""
    return [(f"keys.{layer}", f"values.{layer}") for layer in range(model.num_hidden_layers)]


def updated(cache: str) -> str:
    """Name of the output that is a cache after the call."""
    return f"{cache}.updated"


def input_shapes(
    model: ModelConfig, build: BuildConfig, target: str, batch: int, tokens: int, num_logits: int
) -> dict[str, tuple[int, ...]]:
    """The shape of each input of a call by its name; sizes of -1 vary."""
    caches = (batch, model.num_key_value_heads, cache_slots(model, build, target), model.head_dim)
    rotation = {} if model.rope is None else {ROTATION: (batch, tokens, 4, model.head_dim // 2)}
    return {
        TOKENS: (batch, tokens),
        WRITE_SLOTS: (batch,),
        ROWS: (batch, 3),
        QUERIES: (batch, tokens, 2),
        **rotation,
        LOGITS_ROWS: (num_logits,),
        **{name: caches for names in cache_names(model) for name in names},
    }


def largest_call(build: BuildConfig, profile: str) -> tuple[int, int, int]:
    """B, T and N of the largest call of a profile; the smallest is 1, 1, 1.

    ``decode``: a token of each of several sessions, all logits. ``prefill``: a chunk of one session, its last token's
    logits. ``score``: the same with the logits of all its tokens.
    """
    return {
        DECODE: (build.max_batch_size, 1, build.max_batch_size),
        PREFILL: (1, build.max_num_tokens, 1),
        SCORE: (1, build.max_num_tokens, build.max_num_tokens),
    }[profile]


def chunk_lengths(window: Window, first: int, num_tokens: int) -> list[int]:
    """How many of the tokens ``first``, ``first + 1``, ... each call takes, so that their slots are contiguous.

    A call ends where the ring wraps, and after the last sink where the cache has room for more sinks.
    """
    lengths = []
    while num_tokens > 0:
        if first < window.sinks < window.max_sinks:
            room = window.sinks - first
        else:
            room = window.max_sinks + window.ring_slots - window.slot(first)
        lengths.append(min(room, num_tokens))
        first += lengths[-1]
        num_tokens -= lengths[-1]
    return lengths


def row(step: Step, num_tokens: int) -> tuple[int, int, int]:
    """``rows`` of a session that is fed ``num_tokens`` tokens from ``step`` on."""
    window, last = step.window, step.t + num_tokens - 1
    newest = (last - window.sinks) % window.ring_slots if last >= window.sinks else 0
    return window.sinks, newest, min(window.ring_slots, max(last + 1 - step.ring_first, 0))


def queries(step: Step, num_tokens: int) -> list[tuple[int, int]]:
    """``queries`` of a session that is fed ``num_tokens`` tokens from ``step`` on."""
    return [(step.window.cache_position(step.t + j), num_tokens - 1 - j) for j in range(num_tokens)]
