"""What `cg-local bench` measures: the engine beside the machine's limits and beside other engines.

`session` runs a measurement, `summary` turns its raw rounds into figures, `table` and `plot` show them. Everything that
is timed runs in a process of its own (`worker`, `llama_worker`, `read_bandwidth`, `int8_peak`), one at a time.
Invariant: a figure in a table or plot is computed from the raw rounds of the document that is stored.
"""
