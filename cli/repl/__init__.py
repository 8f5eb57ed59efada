"""The conversation in a terminal: editing questions, commands, and answers rendered as they come.

This package owns keys, screens and commands. What a conversation is, how it is saved and what a model computes is
decided elsewhere. Invariant: what was printed is never printed again or moved, and no character of a model's text
reaches the terminal but through `terminal_text`.
"""
