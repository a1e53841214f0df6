"""Tuning on 2AFC triplets: LoRA, or an MLP on frozen embeddings."""
