"""Tuning of a small model for conversations about code, on pairs that programs make.

This package owns the pairs, their check against the evaluation's questions, and the run that tunes. It does not answer
questions: the evaluation runs in `benchmarks/`, through the engine. Invariant: the same seed gives the same pairs.
"""
