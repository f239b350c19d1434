"""What makes a training fast, or lets it fit: how attention is computed, and whether activations are kept."""
