"""The claims of the papers, measured: one command, two worlds."""
