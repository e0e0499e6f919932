"""OpenAI's protocols on sessions: HTTP in front of Triton's gRPC, without engine, tokenizer or chat template."""
