"""Infilling around the model: where the gap is, what to keep of the answer.

`cursor` reads a file and cuts it at a cursor, `syntax` scans brackets, strings and comments, `postprocess` decides
where the middle ends and what of it is kept. No module here knows tokens, prompts or the engine. Invariant: text in,
text out; nothing outside the gap is ever changed.
"""
