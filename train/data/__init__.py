"""Data sets: made (scenes) and read (images, 2AFC triplets)."""
