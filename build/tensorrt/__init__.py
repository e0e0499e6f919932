"""The ``tensorrt`` and ``tensorrt-rtx`` targets: one network definition, of TensorRT's own layers."""
