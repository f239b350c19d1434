"""How a connector learns."""
