"""The server's side: package an engine for Triton, run Triton, and the requests that its model takes."""
