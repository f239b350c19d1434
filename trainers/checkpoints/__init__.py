"""What a training leaves: whole checkpoints, their average, LoRA adapters."""
