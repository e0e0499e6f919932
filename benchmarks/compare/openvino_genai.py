"""The contestant that computes with OpenVINO GenAI, which reads .gguf files itself."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.compare.gguf_formats import weight_bytes
from trtstream.settings import ModelConfig

BLOCK = 32  # tokens: of its cache, and of what it always keeps at the start
CACHE_GB = 1
ENDLESS = 1 << 30  # tokens


class OpenvinoGenai:
    """Its continuous batching with one request, one step at a time.

    ``evict``: with its own eviction, in blocks, down to W tokens while it generates. Start tokens and the last ones
    stay, and between them those that were attended most. Without it the cache grows. ``apply_rotation``, which would
    close the gaps between the positions that are left, ends the process in 2026.4.1.

    It takes no text but its own answer, so that nothing of it can be compared with the others' predictions. What is fed
    in calls of several tokens is its prompt.
    """

    def __init__(self, threads: int, gguf: str, model: ModelConfig, window: int, evict: bool) -> None:
        import openvino
        import openvino_genai

        self._tensor, self._config = openvino.Tensor, openvino_genai.GenerationConfig
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.cache_size = CACHE_GB
        scheduler.max_num_batched_tokens = window
        self.note = f"openvino-genai {importlib.metadata.version('openvino-genai')}, own text, 8-bit cache"
        if evict:
            recent = window - 3 * BLOCK
            scheduler.use_cache_eviction = True
            scheduler.cache_eviction_config = openvino_genai.CacheEvictionConfig(
                BLOCK, recent, window, openvino_genai.AggregationMode.NORM_SUM
            )
            self.note += f", keeps {BLOCK} start and {recent} recent tokens"
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            gguf, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
        self._most = window if evict else ENDLESS
        self._prompt: list[int] = []
        self._answer: Any = None  # a request's handle
        self._tokens = self._requests = 0
        self._weight_bytes = weight_bytes(gguf)
        self._bytes_per_token = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim

    @property
    def step_bytes(self) -> int:
        return self._weight_bytes + min(self._tokens, self._most) * self._bytes_per_token

    def feed(self, tokens: Sequence[int]) -> np.ndarray | None:
        self._tokens += len(tokens)
        if len(tokens) > 1:
            self._prompt += tokens
            return None
        if self._answer is None:
            self._answer = self._request(self._prompt, ENDLESS)
        self._pipeline.step()
        return None

    def prefill(self, tokens: Sequence[int]) -> None:
        if self._answer is not None:
            self._answer.stop()
        self._answer = self._request(tokens, 1)  # kept: dropping a handle drops its request
        self._pipeline.step()  # before it the pipeline has not noticed the request
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        self._answer = None

    def _request(self, ids: Sequence[int], max_new_tokens: int) -> Any:
        self._requests += 1
        config = self._config(max_new_tokens=max_new_tokens, ignore_eos=True)
        return self._pipeline.add_request(self._requests, self._tensor(np.array([ids], np.int64)), config)
