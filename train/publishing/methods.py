"""The methods that make encoders: what a model card says of each, and what it cites."""

from __future__ import annotations

from dataclasses import dataclass

PAPER_CITED = (
    "Croce, Schlarmann, Singh, Hein: *Adversarially Robust CLIP Models Can Induce Better (Robust) Perceptual Metrics*"
)
_NIGHTS = "Fu et al.: *DreamSim: Learning New Dimensions of Human Visual Similarity using Synthetic Data*, 2023"


@dataclass(frozen=True)
class Method:
    """How an encoder was made, as the rest of a sentence that begins with it, and what is cited for that.

    Example:
        >>> METHODS["CLIP"]
        Method(about='trained from scratch on images and their captions', cite=None)
    """

    about: str
    cite: str | None = None


METHODS = {
    "CLIP": Method("trained from scratch on images and their captions"),
    "FARE": Method(
        "fine-tuned without labels so that an attacked image keeps the embedding that the base gives to the clean one "
        "(FARE)",
        "Schlarmann, Singh, Croce, Hein: *Robust CLIP: Unsupervised Adversarial Fine-Tuning of Vision Embeddings for "
        "Robust Large Vision-Language Models*, 2024",
    ),
    "TeCoA": Method(
        "fine-tuned so that attacked images are still classified by the names of their classes (TeCoA)",
        "Mao et al.: *Understanding Zero-Shot Adversarial Robustness for Large-Scale Models*, 2023",
    ),
    "Sim-CLIP": Method(
        "fine-tuned without labels so that the embedding of an attacked image keeps its direction (Sim-CLIP)",
        "Hossain, Imteaj: *Sim-CLIP: Unsupervised Siamese Adversarial Fine-Tuning for Robust and Semantically-Rich "
        "Vision-Language Models*, 2024",
    ),
    "LORE": Method(
        "fine-tuned without labels under attack, with a bound on how far clean embeddings may move (LORE)",
        "Khodabandeh et al.: *LORE: Lagrangian-Optimized Robust Embeddings for Visual Encoders*, 2025",
    ),
    "LoRA": Method("tuned on people's judgements of similarity with low-rank updates, which are merged in", _NIGHTS),
    "MLP": Method("given a residual MLP head, which alone was tuned on people's judgements of similarity", _NIGHTS),
}
