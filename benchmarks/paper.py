"""The StreamingLLM paper's own figures (Xiao et al., ICLR 2024), for comparison with ours in docs/results.md.

Each is as the paper prints it, under the table or figure that has it. The models and texts are the paper's.
"""

from __future__ import annotations

ADDRESS = "https://arxiv.org/abs/2309.17453"

# Table 2: perplexity by number of sink tokens, over 400,000 tokens of the PG19 test set. Sink tokens and recent ones
# are 4,096 together for Llama-2-7B, and 2,048 for the others.
SINK_TOKENS = (0, 1, 2, 4, 8)
SINKS = {
    "Llama-2-7B": ("3359.95", "11.88", "10.51", "9.59", "9.54"),
    "Falcon-7B": ("17.90", "12.12", "12.12", "12.12", "12.12"),
    "MPT-7B": ("460.29", "14.99", "15.00", "14.99", "14.98"),
    "Pythia-12B": ("21.62", "11.95", "12.09", "12.09", "12.02"),
}

# Table 3: perplexity by number of sink tokens, 1,024 tokens with the recent ones, of models with 160 million
# parameters, on the first sample of the PG19 test set. The learned sink counts as a sink token.
LEARNED_SINK_TOKENS = (0, 1, 2, 4)
LEARNED_SINK = {
    "trained as usual": ("27.87", "18.49", "18.05", "18.05"),
    "trained with a learned sink": ("1235", "18.01", "18.01", "18.02"),
}

# Figure 1: perplexity of Llama-2-13B on the first book (65,000 tokens) of the PG19 test set. Table 1 has two of them in
# full, and their windows: 0 + 1,024 and 4 + 1,020.
METHODS = {"streaming": "5.40", "window": "5158.07", "dense": "5641", "recompute": "5.43"}

# Table 7: accuracy (%) of Llama-2-7B-32K-Instruct on StreamEval by tokens between answer and question, with windows of
# 4 sink tokens and 2,044 or 4,092 recent ones.
RECALL_WINDOWS = (2048, 4096)
RECALL = {
    460: ("85.80", "84.60"),
    920: ("80.35", "83.80"),
    1380: ("79.15", "82.80"),
    1840: ("75.30", "77.15"),
    2300: ("0.00", "61.60"),
    3450: ("0.00", "68.20"),
    4600: ("0.00", "0.00"),
    23000: ("0.00", "0.00"),
}

# Figure 10: decode latency (ms per token) by window, on one NVIDIA A6000 with Hugging Face Transformers: recompute, and
# streaming. The text's "up to 22.2 x" is the last of Llama-2-13B.
LATENCY = {
    "Llama-2-7B": {256: (63, 31), 512: (103, 31), 1024: (223, 35), 2048: (523, 45), 4096: (1411, 65)},
    "Llama-2-13B": {256: (99, 48), 512: (169, 52), 1024: (361, 60), 2048: (860, 75), 4096: (2355, 106)},
}
