"""The commands `align`, `imitate`, `distill`, `targets` and `encode`: settings, recipes, launch."""
