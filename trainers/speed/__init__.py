"""What makes a training fast, or lets it fit: attention, what all rows begin with, whether activations are kept."""
