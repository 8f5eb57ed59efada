"""The model in JAX: parity with the other paths, and evaluation and batch generation over a mesh of devices.

This package needs the extra `jax` and is imported when a command asks for it, never before. It reads published weights
and model folders as they are and writes neither. Invariant: the arithmetic is the one of ARCHITECTURE.md, "Numerics";
how it is spread over devices is said in shardings alone (`mesh`) and changes no greedy token but a tie.
"""
