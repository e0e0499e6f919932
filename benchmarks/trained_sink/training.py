"""Small Llamas, trained in pairs of one seed and one text: as usual, and with a sink token in front of each sample."""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from trtstream.atomic_file import atomic_file
from trtstream.evaluation.tokens import tokenize
from trtstream.runtime.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

SINK = 0  # its id in the vocabulary of both models of a pair; no text has it
NOT_PREDICTED = -100  # a label that transformers leaves out
WARM_UP = 0.05  # of the steps
STATES = 20  # how many times the state of a training is saved
SEED_OF_SAMPLES = 1_000_003


@dataclass(frozen=True)
class Size:
    """A model and its training. ``context`` and ``tokens`` are in tokens, ``batch`` in samples of one context."""

    layers: int
    width: int
    heads: int
    intermediate: int
    vocabulary: int
    context: int
    batch: int
    tokens: int
    learning_rate: float


SIZES = {
    "tiny": Size(2, 64, 2, 128, 512, 64, 16, 100_000, 3e-3),  # tries the script
    "4m": Size(4, 256, 4, 704, 4096, 256, 4, 2_000_000, 2e-3),
    "160m": Size(12, 768, 12, 2048, 32_000, 1024, 128, 3_000_000_000, 6e-4),
}


def split(text: Path, folder: Path, share: float = 0.05) -> tuple[Path, Path]:
    """The text without its end, to train on, and that end, which is ``share`` of it, as files in ``folder``."""
    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
    cut = round(len(lines) * (1 - share))
    parts = folder / "train.txt", folder / "held_out.txt"
    for part, some in zip(parts, (lines[:cut], lines[cut:]), strict=True):
        part.write_text("".join(some), encoding="utf-8")
    return parts


def train_tokenizer(text: Path, vocabulary: int, folder: Path) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of the text, saved to ``folder`` unless it is there."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not folder.exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=["<sink>", "<end>"], initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train([str(text)], trainer)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return loaded


def token_ids(text: Path, folder: Path, size: Size) -> np.ndarray:
    """The ids (int32) of all of the text, by the tokenizer in ``folder``."""
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None
    tokens = tokenize(text, tokenizer, size.vocabulary, text.with_suffix(".ids"))
    return tokens.read(0, tokens.count)


def trained(
    size: Size, ids: np.ndarray, *, has_sink: bool, seed: int, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> Path:
    """The checkpoint in ``folder``, which is trained unless it exists. Training that was interrupted is continued.

    Both models of a pair start from the same weights, and see the same samples of ``ids`` in the same order and
    predict the same tokens of them.
    """
    if folder.exists():
        return folder
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    model = _new_model(size)
    torch.nn.Module.to(model, device)  # transformers' own has no types for this
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    steps = max(size.tokens // (size.batch * size.context), 1)
    state = folder.with_name(folder.name + ".state")
    first = _restore(state, model, optimizer)
    started = time.monotonic()
    for step in range(first, steps):
        generator = np.random.default_rng((SEED_OF_SAMPLES + seed, step))
        places = generator.integers(len(ids) - size.context, size=size.batch)
        samples = torch.from_numpy(np.stack([ids[place : place + size.context] for place in places])).long().to(device)
        inputs, labels = _with_sink(samples) if has_sink else (samples, samples)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(input_ids=inputs, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = size.learning_rate * _share_of_rate(step, steps)
        optimizer.step()
        if (step + 1) % max(steps // STATES, 1) == 0:
            _save(state, model, optimizer, step + 1)
            rate = (step + 1 - first) * size.batch * size.context / (time.monotonic() - started)
            print(
                f"{folder.name}: step {step + 1} of {steps}, loss {loss.item():.3f}, {rate:,.0f} tokens/s",
                file=sys.stderr,
            )
    work = folder.with_name(folder.name + ".part")
    model.cpu().save_pretrained(work)
    tokenizer.save_pretrained(work)
    os.rename(work, folder)
    state.unlink(missing_ok=True)
    return folder


def _save(path: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Save the training after ``steps`` steps, in place of what was saved before."""
    with atomic_file(path) as work:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "steps": steps}, work)


def _restore(path: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> int:
    """Load what `_save` has saved. Returns the number of steps that are done."""
    if not path.exists():
        return 0
    saved = torch.load(path, map_location=model.device)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    steps: int = saved["steps"]
    return steps


def _new_model(size: Size) -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            num_hidden_layers=size.layers,
            hidden_size=size.width,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            intermediate_size=size.intermediate,
            vocab_size=size.vocabulary,
            max_position_embeddings=size.context + 1,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=1,
        )
    )


def _with_sink(samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The samples [batch, tokens] with a sink in front, and their labels: as without it, a sample's first token is not
    predicted."""
    sinks = samples.new_full((len(samples), 1), SINK)
    labels = torch.cat([torch.full_like(samples[:, :2], NOT_PREDICTED), samples[:, 1:]], dim=1)
    return torch.cat([sinks, samples], dim=1), labels


def _share_of_rate(step: int, steps: int) -> float:
    """Of the learning rate: linear warm-up, then a cosine down to a tenth."""
    warm_up = max(WARM_UP * steps, 1)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.55 + 0.45 * math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1))
