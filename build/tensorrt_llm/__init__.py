"""The ``tensorrt-llm`` target: checkpoints in TensorRT-LLM's format, and the engines that its trtllm-build makes."""
