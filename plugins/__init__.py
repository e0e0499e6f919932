"""Shared by build and runtime: streaming attention, quantized products, and the libraries and devices they need.

`reference` defines streaming attention; each target has one implementation of it.
"""
