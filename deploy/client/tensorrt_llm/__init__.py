"""The client of Triton's tensorrtllm backend, and its checks."""
