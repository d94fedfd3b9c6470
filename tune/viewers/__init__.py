"""Copies of a sweep in the stores of other tools, made after the fact."""
