"""How nano is made: corpus, tokenizer, fill-in-the-middle documents, packing, training loop, export.

This package needs the extra `train`. It owns no part of the engine: only the command line's `train` imports it, and of
cg_local it uses the errors alone. Invariant: the same recipe, corpus and number of steps give the same weights.
"""
