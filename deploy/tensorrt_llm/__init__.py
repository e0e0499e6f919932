"""Both sides for Triton's tensorrtllm backend: package, launch, client."""
