"""What a connector learns from: distances, divergences, CTC, their terms, and the teacher."""
