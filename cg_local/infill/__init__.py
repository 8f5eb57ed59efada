"""Infilling around the model: where the gap is, what to keep of the answer.

`cursor` reads a file and cuts it at a cursor. `syntax` is the table of languages, `scanner` reads brackets, strings
and comments, `trees` asks tree-sitter. `gap` says how a gap lies in its file, `blocks` where its block ends, `overlap`
where a text repeats the file or itself, `indentation` how the file writes blanks; `postprocess` puts these rules in
order. No module here knows tokens, prompts or the engine. Invariant: text in, text out; nothing outside the gap is ever
changed.
"""
