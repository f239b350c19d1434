"""Training speed and memory at a real size: launch configs on several processes, and forms of a step on one GPU."""
