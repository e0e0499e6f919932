"""``trtstream inspect``: what an engine is, and its plan of memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from trtstream.engine_dir import TOKENIZER, memory_plan, read_engine
from trtstream.settings import BuildConfig, ModelConfig
from trtstream.tables import print_values


@click.command()
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print config.json and the plan as JSON.")
def inspect(engine: Path, as_json: bool) -> None:
    """Show what ENGINE is and how much memory it takes."""
    config = read_engine(engine)
    plan = memory_plan(engine, config)
    if as_json:
        click.echo(json.dumps({**config.to_dict(), "memory": plan}, indent=2))
        return

    tokenizer = "with a tokenizer" if (engine / TOKENIZER).is_dir() else "without a tokenizer (input_ids only)"
    caches = f"{megabytes(plan['kv_cache_bytes_per_session'])} a session, {megabytes(plan['kv_cache_bytes'])} in all"
    print_values(
        [
            ("engine", f"{engine} ({tokenizer})"),
            ("target", f"{config.target}, {_toolchain(config.toolchain)}"),
            *model_rows(config.pretrained_config, config.build_config),
            ("memory: weights", megabytes(plan["weights_bytes"])),
            ("memory: KV cache", caches),
            ("memory: total", f"{megabytes(plan['total_bytes'])}, however long the conversations get"),
        ]
    )


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def model_rows(model: ModelConfig, build: BuildConfig) -> list[tuple[str, str]]:
    """What an engine computes and for which sizes, for `print_values`."""
    heads = f"{model.num_attention_heads} heads, {model.num_key_value_heads} KV heads of {model.head_dim}"
    position = "ALiBi" if model.rope is None else f"RoPE ({model.rope.kind}, theta {model.rope.theta:g})"
    sinks = f"{build.sink_token_length} (room for {build.max_sink_token_length})"
    return [
        ("model", f"{model.architecture}, {model.num_hidden_layers} layers of {model.hidden_size}, {heads}"),
        ("positions", f"{position}, trained on {model.max_position_embeddings} tokens"),
        ("dtype", f"{build.dtype}, quantization {build.quantization}"),
        ("attention window", f"{build.max_attention_window} tokens: {build.ring} recent, sink tokens {sinks}"),
        ("batch", f"{build.max_batch_size} sessions, prefill chunks of {build.max_num_tokens} tokens"),
    ]


def _toolchain(toolchain: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in toolchain.items() if isinstance(version, str))
