"""Servers beside the pipeline: whether they answer alike, and how many requests a second they take."""
