"""Runs TensorRT's builder: its options and profiles, its progress, its plan on disk, and how Ctrl-C stops it."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

from trtstream.errors import TrtstreamError
from trtstream.plugins.tensorrt_io import PROFILES, input_shapes, largest_call
from trtstream.progress import Progress
from trtstream.settings import BuildConfig, ModelConfig

if TYPE_CHECKING:
    import tensorrt as trt

LONGEST_PHASE = "Computing profile costs"
"""The phase of the builder that takes most of the time; its steps run over the profiles."""


def builder_config(
    trt: ModuleType, builder: trt.Builder, model: ModelConfig, build: BuildConfig, target: str
) -> trt.IBuilderConfig:
    """The builder's options, and an optimization profile for each of `PROFILES`.

    A profile is optimized for its largest call: decode steps are slowest with all sessions in them, and all of a
    prompt's chunks but the last are full. TensorRT-RTX's default is a plan for every GPU from Ampere on.
    """
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32, as it does on the other targets
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # TensorRT-RTX: so that CUDA graphs can capture a call
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    smallest = input_shapes(model, build, target, 1, 1, 1)
    for name in PROFILES:
        profile = builder.create_optimization_profile()
        for tensor, largest in input_shapes(model, build, target, *largest_call(build, name)).items():
            profile.set_shape(tensor, smallest[tensor], largest, largest)
        if config.add_optimization_profile(profile) < 0:
            raise TrtstreamError(f"TensorRT refuses the {name} profile: {builder.logger.last_error}")
    return config


def write_plan(
    trt: ModuleType,
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    path: Path,
    progress: Progress,
) -> None:
    """Build the network and write its plan to ``path`` as it comes.

    The builder works on a thread of its own, so that this one gets Ctrl-C and SIGTERM; they end it at its next step.
    Raises TrtstreamError with TensorRT's reason if it cannot build the network, OSError if the plan cannot be written.
    """
    monitor = _new_monitor(trt)
    config.progress_monitor = monitor
    with path.open("wb") as file:
        writer = _new_writer(trt, file)
        with ThreadPoolExecutor(1) as pool:
            try:  # around the submission too: a signal may come while the builder's thread starts
                built = pool.submit(builder.build_serialized_network_to_stream, network, config, writer)
                while not wait([built], timeout=0.1).done:
                    progress(monitor.done, monitor.steps)
            except BaseException:
                monitor.stopped = True
                print("stopping TensorRT's builder, which takes until its next step", file=sys.stderr)
                raise
    if writer.error is not None:
        raise writer.error
    if not built.result():
        raise TrtstreamError(f"TensorRT cannot build this engine: {builder.logger.last_error}")
    progress(1, 1)


def _new_monitor(trt: ModuleType) -> trt.IProgressMonitor:
    base: Any = trt.IProgressMonitor

    class Monitor(base):
        """``done`` of ``steps`` of the longest phase. ``stopped``, once true, ends the build."""

        done, steps, stopped = 0, 1, False

        def phase_start(self, phase: str, parent: str | None, num_steps: int) -> None:
            if phase == LONGEST_PHASE:
                self.steps = num_steps

        def step_complete(self, phase: str, step: int) -> bool:
            if phase == LONGEST_PHASE:
                self.done = step + 1
            return not self.stopped

        def phase_finish(self, phase: str) -> None:
            pass

    return Monitor()


def _new_writer(trt: ModuleType, file: IO[bytes]) -> trt.IStreamWriter:
    base: Any = trt.IStreamWriter

    class Writer(base):
        """Keeps a disk's ``error``: no exception may pass through TensorRT."""

        error: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:
                self.error = error
                return 0

    return Writer()
