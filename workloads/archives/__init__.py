"""What serves a run over an archive: its live line."""
