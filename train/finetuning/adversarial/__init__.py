"""Adversarial fine-tuning of an image encoder: FARE, TeCoA, Sim-CLIP and LORE."""
