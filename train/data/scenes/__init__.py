"""Drawn scenes: their images, and their triplets in the formats of the field."""
