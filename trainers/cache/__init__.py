"""Frozen-encoder outputs and teacher states on disk: written once by `encode`, read by the trainers."""
