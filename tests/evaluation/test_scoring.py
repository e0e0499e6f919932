"""Every method against its definition, token by token."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.checkpoints import write_checkpoint
from tests.engines import random_tokens, reference_logits
from tests.runtime.clients import BOS, EOS, byte_tokenizer
from trtstream.build.checkpoint import Checkpoint, open_checkpoint
from trtstream.build.cpu import build_cpu_engine
from trtstream.evaluation.curve import Curve
from trtstream.evaluation.engines import Subject, open_subject
from trtstream.evaluation.lru import LruBackend
from trtstream.evaluation.runs import open_engine, score_run
from trtstream.evaluation.scoring import Run
from trtstream.evaluation.tokens import TokenFile
from trtstream.plugins.positions import PositionEncoding, rotate, rotation
from trtstream.runtime.decoder import collect_weights, decode_layers
from trtstream.runtime.decoder import logits as logits_of
from trtstream.runtime.loading import load_engine
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.settings import BuildConfig

TOKENS = 2500  # more than a segment
WINDOW = 24


@pytest.fixture(scope="module", params=["llama-gqa", "falcon-7b"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Checkpoint]:
    folder = tmp_path_factory.mktemp("scoring") / "checkpoint"
    write_checkpoint(folder, request.param, vocab_size=260, bos_token_id=BOS, eos_token_id=EOS)
    byte_tokenizer().save_pretrained(folder)
    return open_subject(folder, None), open_checkpoint(folder)


def token_file(folder: Path) -> tuple[TokenFile, list[int]]:
    ids = torch.randint(260, (TOKENS,), generator=torch.Generator().manual_seed(2)).tolist()
    np.array(ids, dtype="<i4").tofile(folder / "ids")
    return TokenFile(folder / "ids"), ids


def lru_logits(checkpoint: Checkpoint, ids: list[int], window: int) -> torch.Tensor:
    """The definition, head by head on lists: logits [T, vocab]."""
    model = checkpoint.model
    frequencies = PositionEncoding.of(model).frequencies
    weights = collect_weights(model, set(checkpoint.tensor_names()), checkpoint.tensor)
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    kept: list[list[dict[str, Any]]] = [[] for _ in range(model.num_hidden_layers)]  # in the order of the text
    t = 0

    def turned(x: torch.Tensor, place: int) -> torch.Tensor:
        return rotate(x, *rotation(torch.tensor(place), frequencies))

    def attention(layer: int, qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv.view(-1, model.head_dim).split((heads, kv_heads, kv_heads))
        tokens = kept[layer]
        if len(tokens) == window:
            del tokens[min(range(window), key=lambda i: tokens[i]["used"])]  # the first of several is the oldest
        tokens.append({"key": k, "value": v, "used": t})
        out, shares = [], []
        for head in range(heads):
            group = head // (heads // kv_heads)
            query = turned(q[head], len(tokens) - 1)
            scores = [query @ turned(token["key"][group], place) for place, token in enumerate(tokens)]
            share = (torch.stack(scores) / model.head_dim**0.5).softmax(dim=0)
            shares.append(share)
            out.append(sum(s * token["value"][group] for s, token in zip(share, tokens, strict=True)))
        for token, share in zip(tokens, torch.stack(shares).mean(dim=0), strict=True):
            if share >= 1 / len(tokens):
                token["used"] = t
        return torch.cat(out)[None]

    found = []
    with torch.inference_mode():
        for t, token in enumerate(ids):  # noqa: B007 (attention reads t)
            hidden = decode_layers(weights.embedding[[token]], weights, model, attention)
            found.append(logits_of(hidden, weights, model))
    return torch.cat(found)


def test_lru_by_its_definition(subject: tuple[Subject, Checkpoint], tmp_path: Path) -> None:
    _, ids = token_file(tmp_path)
    ids, window = ids[:40], 10
    engine = open_engine(Run("lru", "lru", 0, window), subject[0])
    expected = lru_logits(subject[1], ids, window)
    engine.reset(0)
    found = torch.cat([engine.prefill(0, ids[:7])[None], *(engine.decode([0], [token]) for token in ids[7:])])
    assert (found - expected[6:]).abs().max() < 1e-4 * expected.std()
    # Below the window it is dense, and past it neither dense nor the plain window.
    dense, plain = (reference_logits(subject[1], ids, 0, size) for size in (len(ids), window))
    assert (expected[:window] - dense[:window]).abs().max() < 1e-4 * expected.std()
    for other in (dense, plain):
        assert (expected[window:] - other[window:]).abs().max() > 0.1 * expected.std()
    predicted = expected[:-1].log_softmax(dim=-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    engine.reset(0)
    assert (engine.score(0, ids)[1:] - predicted).abs().max() < 1e-4 * expected.std()


def test_lru_with_alibi_is_dense_below_its_window(tmp_path: Path) -> None:
    checkpoint, ids = open_checkpoint(write_checkpoint(tmp_path, "falcon-rw")), random_tokens(12)
    weights = collect_weights(checkpoint.model, set(checkpoint.tensor_names()), checkpoint.tensor)
    build = BuildConfig(max_batch_size=1, max_attention_window=12, sink_token_length=0, max_sink_token_length=0)
    engine = StreamingEngine(checkpoint.model, build, LruBackend(checkpoint.model, build, weights))
    expected = reference_logits(checkpoint, ids, 0, 12)
    found = torch.cat([engine.decode([0], [token]) for token in ids])
    assert (found - expected).abs().max() < 1e-4 * expected.std()


def losses_of(run: Run, subject: Subject, tokens: TokenFile, folder: Path) -> torch.Tensor:
    score_run(run, subject, tokens, folder)
    return torch.from_numpy(np.fromfile(folder / f"{run.name}.f32", dtype="<f4"))


@pytest.mark.quick("llama-gqa-streaming-*", "llama-gqa-dense-*")
@pytest.mark.parametrize(
    ("method", "sinks", "window"), [("streaming", 4, WINDOW), ("window", 0, WINDOW), ("dense", 0, TOKENS - 1)]
)
def test_methods_by_the_reference(
    method: str, sinks: int, window: int, subject: tuple[Subject, Checkpoint], tmp_path: Path
) -> None:
    tokens, ids = token_file(tmp_path)
    logits = reference_logits(subject[1], ids, sinks, window - sinks)
    expected = -logits[:-1].log_softmax(dim=-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    found = losses_of(Run(method, method, sinks, window), subject[0], tokens, tmp_path)
    assert (found - expected).abs().max() < 1e-4 * logits.std()


def test_recompute_by_the_reference(subject: tuple[Subject, Checkpoint], tmp_path: Path) -> None:
    tokens, ids = token_file(tmp_path)
    found = losses_of(Run("recompute", "recompute", 0, WINDOW, every=70), subject[0], tokens, tmp_path)
    positions = range(70, TOKENS, 70)
    assert len(found) == len(positions)
    for loss, position in zip(found, positions, strict=True):
        logits = reference_logits(subject[1], ids[position - WINDOW : position], 0, WINDOW)[-1]
        assert abs(loss + logits.log_softmax(dim=-1)[ids[position]]) < 1e-4 * logits.std()


def test_chunked_is_token_by_token(subject: tuple[Subject, Checkpoint], tmp_path: Path) -> None:
    """The decode step of a built engine, one token at a time, against the evaluation's chunks."""
    tokens, ids = token_file(tmp_path)
    build = BuildConfig(max_batch_size=1, max_attention_window=WINDOW)
    build_cpu_engine(subject[1], build, tmp_path / "engine", lambda done, total: None)
    engine = load_engine(tmp_path / "engine")
    logits = torch.cat([engine.decode([0], [token]) for token in ids[:-1]])
    expected = -logits.log_softmax(dim=-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    found = losses_of(Run("streaming", "streaming", 4, WINDOW), subject[0], tokens, tmp_path)
    assert (found - expected).abs().max() < 1e-4 * logits.std()


def test_an_engine_with_a_learned_sink_token(subject: tuple[Subject, Checkpoint], tmp_path: Path) -> None:
    tokens, ids = token_file(tmp_path)
    build = BuildConfig(
        max_batch_size=1, max_attention_window=WINDOW, sink_token_length=1, max_sink_token_length=1, sink_token=7
    )
    build_cpu_engine(subject[1], build, tmp_path / "engine", lambda done, total: None)
    logits = reference_logits(subject[1], [7, *ids], 1, WINDOW - 1)[1:]
    expected = -logits[:-1].log_softmax(dim=-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    found = losses_of(
        Run("streaming", "streaming", 1, WINDOW), open_subject(tmp_path / "engine", None), tokens, tmp_path
    )
    assert (found - expected).abs().max() < 1e-4 * logits.std()


def test_the_curve_is_the_losses(tmp_path: Path) -> None:
    losses = np.random.default_rng(0).random(5000).astype(np.float32)
    curve = Curve()
    for begin in range(0, 5000, 700):
        end = min(begin + 700, 5000)
        curve.add(np.arange(begin + 1, end + 1), losses[begin:end])
    points = curve.points()
    assert curve.perplexity == pytest.approx(math.exp(losses.astype(float).mean()))
    assert [point["first"] for point in points[1:]] == [point["last"] + 1 for point in points[:-1]]
    for point in points:
        inside = losses[point["first"] - 1 : point["last"]].astype(float)
        assert point["tokens"] == len(inside)
        assert point["loss"] == pytest.approx(inside.mean())
        assert point["perplexity_so_far"] == pytest.approx(math.exp(losses[: point["last"]].astype(float).mean()))
