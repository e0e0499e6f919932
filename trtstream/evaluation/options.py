"""The options of ``trtstream eval``, and the combinations of them that are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click


@dataclass(frozen=True)
class Options:
    """The values of the command's options; None where one was not given and has no default."""

    checkpoint: str
    revision: str | None
    text: Path
    methods: list[str]
    tokens: int | None
    sink_token_length: int | None
    max_attention_window: int | None
    dtype: str | None
    every: int
    sweep_sinks: list[int] | None
    sweep_window: list[int] | None
    recall: list[int] | None
    facts: int
    with_recall: int | None
    generate: int | None
    force: bool
    keep: Path | None
    resume: bool
    json_file: Path | None
    plot_file: Path | None

    @property
    def sweeping(self) -> bool:
        return self.sweep_sinks is not None or self.sweep_window is not None

    @property
    def checkpoint_name(self) -> str:
        """The checkpoint without its folder or owner."""
        return Path(self.checkpoint).name

    @property
    def title(self) -> str:
        """The title of a picture."""
        return f"{self.checkpoint_name} on {self.text.name}"

    def check(self) -> None:
        """Raise click.UsageError for options that do not go together."""
        recall, generate = self.recall is not None, self.generate is not None
        refusals = {
            "--with-recall needs --recall": self.with_recall is not None and not recall,
            "--with-recall has at most 128 --facts": self.with_recall is not None and self.facts > 128,
            "--sweep-sinks, --sweep-window and --recall are for --method streaming": (
                (self.sweeping or recall) and self.methods != ["streaming"]
            ),
            "--recall cannot be combined with a sweep; run them one after the other": recall and self.sweeping,
            "--every is for --method recompute": self.every > 1 and "recompute" not in self.methods,
            "--resume needs --keep FOLDER, which holds the runs to continue": self.resume and self.keep is None,
            "--recall keeps nothing, and takes as many tokens as its distances": (
                recall and (self.keep is not None or self.tokens is not None)
            ),
            "--generate has methods, sinks and a window, and neither sweeps, recall nor --tokens": generate
            and (self.sweeping or recall or self.tokens is not None or self.every > 1),
        }
        for message, refused in refusals.items():
            if refused:
                raise click.UsageError(message)
