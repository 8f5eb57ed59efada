"""The command line: one file per command, and how answers, notices and errors reach a person.

This package parses, calls the public API and renders; what is computed is decided elsewhere. Invariant: stdout carries
the answer and nothing else, and no module here imports NumPy or Numba when it is imported.
"""
