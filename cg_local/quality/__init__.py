"""`cg-local eval quality`: how far quantized models are from the published weights, beside llama.cpp's files.

This package owns what is compared and how the figures are told. Divergences and corpora are `quant`'s, GGUF files and
the worker of llama.cpp `bench`'s. Invariant: every model of a report is scored on the same tokens, against the same
reference in float32.
"""
