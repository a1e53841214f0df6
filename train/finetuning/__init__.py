"""Fine-tuning of image encoders: adversarially, on similarity judgements, and as a CLIP from scratch."""
