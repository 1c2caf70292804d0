"""Entropy coders over frequency tables that are stored and never computed again: ours, and constriction's beside it."""
