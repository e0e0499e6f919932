"""``trtstream inspect``: an engine's model, sizes and memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from trtstream.engine_dir import TOKENIZER, EngineMemory, engine_memory, read_engine, verify_files
from trtstream.settings import BuildConfig, ModelConfig
from trtstream.tables import print_values


@click.command()
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print config.json and the memory as JSON.")
@click.option("--verify", is_flag=True, help="Read all files and compare their checksums.")
def inspect(engine: Path, as_json: bool, verify: bool) -> None:
    """Show the model, the sizes and the memory of ENGINE."""
    config = read_engine(engine)
    if verify:
        verify_files(engine, config)
    memory = engine_memory(engine, config)
    if as_json:
        verified = {"verified": True} if verify else {}
        click.echo(json.dumps({**config.to_dict(), "memory": _memory_bytes(memory), **verified}, indent=2))
        return

    tokenizer = "with a tokenizer" if (engine / TOKENIZER).is_dir() else "without a tokenizer: for input_ids only"
    print_values(
        [
            ("engine", f"{engine}, {tokenizer}"),
            ("target", f"{config.target}, {_toolchain(config.toolchain)}"),
            *model_rows(config.pretrained_config, config.build_config),
            *memory_rows(memory),
            *([("checksums", f"right: config.json and {len(config.files)} files")] if verify else []),
        ]
    )


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def model_rows(model: ModelConfig, build: BuildConfig) -> list[tuple[str, str]]:
    """The model that an engine computes and the sizes that it has, for `print_values`."""
    heads = f"{model.num_attention_heads} heads, {model.num_key_value_heads} KV heads of {model.head_dim}"
    position = "ALiBi" if model.rope is None else f"RoPE ({model.rope.kind}, theta {model.rope.theta:g})"
    sinks = f"{build.sink_token_length} (room for {build.max_sink_token_length})"
    return [
        ("model", f"{model.architecture}, {model.num_hidden_layers} layers of {model.hidden_size}, {heads}"),
        ("positions", f"{position}, trained on {model.max_position_embeddings} tokens"),
        ("dtype", f"{build.dtype}, quantization {build.quantization}, KV cache {build.kv_dtype or build.dtype}"),
        ("attention window", f"{build.max_attention_window} tokens: {build.ring} recent, sink tokens {sinks}"),
        ("batch", f"{build.max_batch_size} sessions, prefill chunks of {build.max_num_tokens} tokens"),
    ]


def memory_rows(memory: EngineMemory) -> list[tuple[str, str]]:
    """The memory that an engine takes, for `print_values`."""
    caches = f"{megabytes(memory.kv_cache)} for {memory.sessions}"
    workspace = "no estimate, not in the total" if memory.workspace is None else f"about {megabytes(memory.workspace)}"
    return [
        ("memory: weights", megabytes(memory.weights)),
        ("memory: KV cache", f"{megabytes(memory.kv_cache_per_session)} a session, {caches}"),
        ("memory: workspace", workspace),
        ("memory: total", f"{megabytes(memory.total)}, however long the conversations get"),
    ]


def _memory_bytes(memory: EngineMemory) -> dict[str, int]:
    return {
        "weights_bytes": memory.weights,
        "kv_cache_bytes_per_session": memory.kv_cache_per_session,
        "kv_cache_bytes": memory.kv_cache,
        "total_bytes": memory.total,
    }


def _toolchain(toolchain: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in toolchain.items() if isinstance(version, str))
