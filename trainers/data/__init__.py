"""Rows in, batches out: loading, filters, augmentation, bad rows, sampling, collators, interleaving, word times."""
