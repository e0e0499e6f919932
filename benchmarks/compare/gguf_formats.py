"""The same checkpoint in other number formats, as .gguf files for llama.cpp."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter


def shipped_format(path: str | Path) -> str:
    """The format of most matrices of the file, such as Q4_1."""
    from gguf import GGUFReader

    kinds = Counter(tensor.tensor_type.name for tensor in GGUFReader(path).tensors if len(tensor.shape) > 1)
    return kinds.most_common(1)[0][0]


def weight_bytes(path: str | Path) -> int:
    """Bytes of the file's tensors that a decode step reads: all except an embedding that is not the head too."""
    from gguf import GGUFReader

    sizes = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(path).tensors}
    return sum(sizes.values()) - (sizes["token_embd.weight"] if "output.weight" in sizes else 0)


def write_in_format(source: Path, kind: str, output: Path) -> None:
    """Write a copy of ``source`` with its matrices in the format ``kind`` (F16, Q8_0); the rest stays as it is."""
    from gguf import GGMLQuantizationType, GGUFReader, LlamaFileType
    from gguf.quants import dequantize, quantize

    reader = GGUFReader(source)
    writer = new_writer(reader, output, {"general.file_type": LlamaFileType[f"MOSTLY_{kind}"]})
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if len(tensor.shape) > 1:
            format_of_matrix = GGMLQuantizationType[kind]
            writer.add_tensor(tensor.name, quantize(values, format_of_matrix), raw_dtype=format_of_matrix)
        else:
            writer.add_tensor(tensor.name, values)
    finish(writer)


def new_writer(source: GGUFReader, output: Path, changed: Mapping[str, int]) -> GGUFWriter:
    """A writer of ``output`` with the metadata of ``source``, of which the values ``changed`` replace some."""
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(output, source.fields["general.architecture"].contents())
    for name, stored in source.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value_type, *item_types = stored.types
        item_type = item_types[-1] if value_type == GGUFValueType.ARRAY else None
        writer.add_key_value(name, changed.get(name, stored.contents()), value_type, item_type)
    return writer


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
