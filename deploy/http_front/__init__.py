"""The HTTP service of ``trtstream serve``: limits, probes and error statuses in front of Triton's own."""
