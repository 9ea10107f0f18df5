"""Lexitome: say what to find, get the mask."""
