"""Coded weights: a file of coded tensors, and how it becomes the model file again.

The standard library alone, Python 3.8 and later: boards decode with these modules, too. The format
is described in docs/coded-weights.md.
"""
