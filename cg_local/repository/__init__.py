"""A folder of source files that belong together: what imports what, what may be read, what of it helps to fill a gap.

It knows no tokens, no model and no terminal. Invariant: no file is read that git ignores or that looks like a secret.
"""
