"""INT8 graphs and k-quant language models."""
