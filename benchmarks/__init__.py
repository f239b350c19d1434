"""The papers in miniature, and the embedded default."""
