"""The Backend protocol: what a `StreamingEngine` computes with, one implementation for each kind of target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from trtstream.plugins.decode_plan import Step


class Backend(Protocol):
    """One cache for ``max_batch_size`` sessions, and the decoder on it.

    Logits are float32 on the backend's device, and a tensor of their own that later calls leave alone. A call sees the
    cache as the calls before it left it, however asynchronous the device. ``spare_slots``: see `Window`.
    """

    spare_slots: int

    def decode(self, steps: Sequence[Step], tokens: Sequence[int]) -> torch.Tensor:
        """Feed one token to each of several sessions; logits [len(steps), vocab]."""

    def prefill(self, first: Step, tokens: Sequence[int], num_logits: int) -> torch.Tensor:
        """Feed up to ``max_num_tokens`` tokens to one session, the first where ``first`` says.

        Returns the logits [num_logits, vocab] after the last ``num_logits`` of them.
        """

    def session_cache(self, lane: int) -> torch.Tensor:
        """A session's cache [layers, ...], as `trtstream.plugins.kv_cache` lays it out: a view, to be read and written
        in place."""


@runtime_checkable
class MixingBackend(Backend, Protocol):
    """A backend for which decode steps and prefill chunks cost less in one pass than one after the other."""

    def mixed(
        self, steps: Sequence[Step], tokens: Sequence[int], chunks: Sequence[tuple[Step, Sequence[int]]]
    ) -> torch.Tensor:
        """Feed one token to each of several sessions, and a chunk to each of several others.

        Returns the logits [len(steps) + len(chunks), vocab] after the tokens, and then after each chunk's last.
        """
