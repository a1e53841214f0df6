"""Embeddings of many image files, and the distances between them."""
