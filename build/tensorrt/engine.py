"""The ``tensorrt`` and ``tensorrt-rtx`` targets: a plan with weights and kernels, built from our network."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from trtstream import __version__
from trtstream.build.checkpoint import Checkpoint
from trtstream.build.tensorrt.builder import builder_config, write_plan
from trtstream.build.tensorrt.network import define_network
from trtstream.build.tensorrt.weights import staged_weights, tensorrt_weights
from trtstream.engine_dir import ENGINE, TOKENIZER, EngineConfig, new_directory, write_config
from trtstream.errors import TrtstreamError
from trtstream.plugins.cuda_device import why_no_gpu
from trtstream.plugins.tensorrt_library import LIBRARIES, load_tensorrt, new_logger
from trtstream.progress import Progress
from trtstream.settings import BuildConfig


def load_builder(target: str) -> ModuleType:
    """The module that builds engines for ``target``. Raises TrtstreamError if this machine cannot."""
    module = load_tensorrt(target)
    if LIBRARIES[target].needs_gpu and (reason := why_no_gpu()):
        raise TrtstreamError(
            f"target {target} builds only on a GPU of the kind that will run the engine: {reason}; "
            "targets tensorrt-rtx and cuda build on any machine"
        )
    return module


def build_tensorrt_engine(
    target: str, checkpoint: Checkpoint, build: BuildConfig, output: Path, progress: Progress
) -> EngineConfig:
    """Write the engine directory ``output`` atomically. ``target``: ``tensorrt`` or ``tensorrt-rtx``.

    ``progress`` counts the weights that are written, its first half, and then the builder's steps. The weights go
    through a file in the work folder, tensor by tensor; `trtstream.build.tensorrt.memory` estimates the memory that the
    builder takes. Raises TrtstreamError, with TensorRT's reason where TensorRT fails.
    """
    trt = load_builder(target)
    weights = tensorrt_weights(checkpoint, build)
    with new_directory(output) as folder:
        staged = staged_weights(weights, folder, lambda done, total: progress(done, 2 * total))
        builder = trt.Builder(new_logger(trt))
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        memory = define_network(trt, network, checkpoint.model, build, target, staged)
        config = builder_config(trt, builder, checkpoint.model, build, target)
        write_plan(
            trt, builder, network, config, folder / ENGINE, lambda done, total: progress(total + done, 2 * total)
        )
        del memory  # the network's constants point to it
        checkpoint.save_tokenizer(folder / TOKENIZER)
        toolchain = {"trtstream": __version__, trt.__name__: trt.__version__}
        return write_config(folder, target, checkpoint.model, build, toolchain, checkpoint.fingerprint())
