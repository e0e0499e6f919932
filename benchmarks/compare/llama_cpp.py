"""The contestant that computes with llama.cpp, through llama-cpp-python's bindings of its C interface."""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Sequence

import numpy as np

from benchmarks.compare.gguf_formats import weight_bytes
from trtstream.errors import TrtstreamError
from trtstream.settings import ModelConfig

DISCARDS = ("one", "half")
FLOAT16 = 2  # bytes


class LlamaCpp:
    """A context of W tokens for each session; sessions all read the same text.

    When it is full it shifts: it discards one token after the first S, or half of them. One at a time is StreamingLLM;
    llama.cpp's own programs discard half. All settings except sizes and threads are its defaults, including a float16
    cache. A prompt runs in a new context, below the window: llama.cpp has no batch past it.
    """

    def __init__(
        self, threads: int, gguf: str, model: ModelConfig, window: int, sinks: int, discard: str, sessions: int = 1
    ) -> None:
        import llama_cpp

        self._api = llama_cpp
        version = importlib.metadata.version("llama-cpp-python")
        self.note = f"llama-cpp-python {version}, float16 cache; the prompt is one batch of W tokens"
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)  # llama.cpp keeps a pointer to it
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        self._model = llama_cpp.llama_model_load_from_file(gguf.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise TrtstreamError(f"llama.cpp cannot load {gguf}")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_seq_max = window * sessions, window, sessions
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise TrtstreamError(f"llama.cpp cannot make a context of {window} tokens")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._window, self._sinks, self._half = window, sinks, discard == "half"
        self._held, self._sessions = 0, sessions
        self._batch = llama_cpp.llama_batch_init(max(window, sessions), 0, 1)
        self._vocab_size = model.vocab_size
        self._weight_bytes = weight_bytes(gguf)
        self._bytes_per_token = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * FLOAT16

    @property
    def step_bytes(self) -> int:
        return self._weight_bytes + self._sessions * self._held * self._bytes_per_token

    def feed(self, tokens: Sequence[int]) -> np.ndarray:
        while tokens:
            if self._held == self._window:
                self._discard()
            batch, tokens = tokens[: self._window - self._held], tokens[self._window - self._held :]
            self._decode(batch)
        logits = self._api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (self._vocab_size,)).copy()

    def prefill(self, tokens: Sequence[int]) -> None:
        self._api.llama_memory_clear(self._memory, False)
        self._held = 0
        self.feed(tokens)

    def _decode(self, tokens: Sequence[int]) -> None:
        sessions = range(self._sessions)
        for together in [sessions] if len(tokens) == 1 else [[session] for session in sessions]:
            rows = [(session, i, token) for session in together for i, token in enumerate(tokens)]
            self._batch.n_tokens = len(rows)
            for row, (session, i, token) in enumerate(rows):
                self._batch.token[row], self._batch.pos[row] = token, self._held + i
                self._batch.n_seq_id[row], self._batch.seq_id[row][0] = 1, session
                self._batch.logits[row] = i == len(tokens) - 1
            status = self._api.llama_decode(self._context, self._batch)
            if status:
                raise TrtstreamError(f"llama_decode failed with status {status}")
        self._held += len(tokens)

    def _discard(self) -> None:
        count = (self._held - self._sinks) // 2 if self._half else 1
        end = self._sinks + count
        for session in range(self._sessions):
            self._api.llama_memory_seq_rm(self._memory, session, self._sinks, end)
            self._api.llama_memory_seq_add(self._memory, session, end, -1, -count)
        self._held -= count
