"""Techniques, recipes that chain them, and the candidates they make."""
