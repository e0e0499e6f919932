"""The GPU targets' measurements. They need torch with CUDA and this repository's sources."""
