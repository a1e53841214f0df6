"""Objectives as per-sample losses (N,), which an attack raises: functions of embeddings, similarities and logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def fare(embedding: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Compute FARE's loss, || phi(z) - phi_orig(x) ||_2^2 of unnormalised embeddings (N, D): (N,) (paper, eq. 2).

    Example:
        >>> fare(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2, 2))
        tensor([25.,  0.])
    """
    return (embedding - original).square().sum(1)


def tecoa(embedding: torch.Tensor, classes: torch.Tensor, label: torch.Tensor, scale: float = 100.0) -> torch.Tensor:
    """Compute TeCoA's loss, cross-entropy of scale * cos(phi(z), psi(t_k)) against the class y: (N,) (Mao et al. 2023).

    Args:
        embedding: phi(z), (N, D), of any length.
        classes: psi(t_k), the unit embeddings (K, D) of the classes' prompts.
        label: y, (N,) in 0 .. K - 1.
        scale: the factor that makes cosines logits, 100 in CLIP.

    Example:
        >>> embedding, classes = torch.tensor([[0.0, 2.0], [1.0, 1.0]]), torch.eye(2)
        >>> tecoa(embedding, classes, torch.tensor([0, 0]))  # wrong by 100 logits; undecided, which costs log 2
        tensor([100.0000,   0.6931])
    """
    logits = scale * F.normalize(embedding, dim=1) @ classes.T  # (N, K)
    return F.cross_entropy(logits, label, reduction="none")


def sim_clip(adversarial: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Compute Sim-CLIP's loss, (N,) (Hossain & Imteaj 2024).

    1 - 1/2 [cos(phi(z), sg(phi(x))) + cos(phi(x), sg(phi(z)))].

    Both embeddings (N, D) are the tuned encoder's own; sg passes no gradient, so that each branch follows the other as
    a fixed target, which keeps the two from collapsing to a point. The constant 1 is ours: the loss is 0 where the
    two agree.

    Example:
        >>> sim_clip(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
        tensor([0., 1.])
    """
    towards_clean = torch.cosine_similarity(adversarial, clean.detach())
    towards_adversarial = torch.cosine_similarity(clean, adversarial.detach())
    return 1 - (towards_clean + towards_adversarial) / 2


def lore(
    adversarial: torch.Tensor, clean: torch.Tensor, original: torch.Tensor, multiplier: torch.Tensor, rho: float
) -> torch.Tensor:
    """Compute LORE's Lagrangian, FARE with a bound on how far clean embeddings move (Khodabandeh et al. 2025, eq. 7).

    || phi(z) - phi_orig(x) ||_2^2 + lambda(x) (|| phi(x) - phi_orig(x) ||_2^2 - rho || phi_orig(x) ||_2^2).

    It is (N,). The encoder lowers it, the multiplier lambda(x) >= 0 raises it (`lore.DualNetwork`).

    Args:
        adversarial: phi(z), (N, D), not normalised.
        clean: phi(x), (N, D).
        original: phi_orig(x), (N, D).
        multiplier: lambda(x), (N,).
        rho: share of || phi_orig(x) ||^2 by which the clean embedding may move (0.1 in the paper).

    Example:
        >>> original, clean, adversarial = torch.tensor([[[2.0, 0.0]], [[3.0, 0.0]], [[2.0, 2.0]]])
        >>> lore(adversarial, clean, original, multiplier=torch.tensor([0.5]), rho=0.1)  # 4 + 0.5 (1 - 0.1 * 4)
        tensor([4.3000])
    """
    return fare(adversarial, original) + multiplier * excess(clean, original, rho)


def excess(clean: torch.Tensor, original: torch.Tensor, rho: float) -> torch.Tensor:
    """Compute LORE's constraint || phi(x) - phi_orig(x) ||_2^2 - rho || phi_orig(x) ||_2^2: (N,), positive if broken.

    Example:
        >>> excess(clean=torch.tensor([[3.0, 0.0]]), original=torch.tensor([[2.0, 0.0]]), rho=0.1)  # 1 - 0.1 * 4
        tensor([0.6000])
    """
    return fare(clean, original) - rho * original.square().sum(1)


def two_afc_cross_entropy(similarities: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Compute the cross-entropy of [sim(ref, left), sim(ref, right)], (N, 2), against the human label (N,) in {0, 1}.

    The similarities are the logits, with no temperature (paper, eq. 4).

    Example:
        >>> two_afc_cross_entropy(torch.tensor([[0.5, 0.5]]), torch.tensor([1]))  # undecided: log 2
        tensor([0.6931])
    """
    return F.cross_entropy(similarities, label, reduction="none")


def two_afc_margin(similarities: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Subtract the other image's similarity from that of the one people chose: (N,), positive where right.

    The one quantity here that an attack lowers: Square's loss is its negative.

    Example:
        >>> two_afc_margin(torch.tensor([[0.75, 0.5], [0.75, 0.5]]), torch.tensor([0, 1]))
        tensor([ 0.2500, -0.2500])
    """
    chosen = similarities.gather(1, label[:, None])[:, 0]
    other = similarities.gather(1, 1 - label[:, None])[:, 0]
    return chosen - other


def odd_one_out_choice(similarities: torch.Tensor) -> torch.Tensor:
    """Choose the image outside the most similar pair: (N,) in {0, 1, 2}, or -1 where a similarity is NaN.

    Args:
        similarities: (N, 3), of the pairs (0, 1), (0, 2), (1, 2). Of equally similar pairs the first wins.

    Example:
        >>> odd_one_out_choice(torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.2, 0.9], [0.5, 0.5, 0.5]]))
        tensor([2, 0, 2])
    """
    odd = 2 - similarities.argmax(1)  # without 2, without 1, without 0: the odd image is 2 - the pair's place
    return torch.where(similarities.isnan().any(1), -1, odd)


def odd_one_out(similarities: torch.Tensor, odd: torch.Tensor) -> torch.Tensor:
    """Subtract the similarity of the other two images from the odd image's larger one: (N,), positive where fooled.

    Negative where the metric agrees with people. At exactly zero two pairs tie, and the rule of
    `odd_one_out_choice` decides (the first most similar pair wins): judge success by the choice, not by this sign.

    Args:
        similarities: (N, 3), of the pairs (0, 1), (0, 2), (1, 2).
        odd: the image that people singled out, (N,) in {0, 1, 2}.

    Example:
        >>> odd_one_out(torch.tensor([[0.75, 0.25, 0.5]]), torch.tensor([2]))  # max(0.25, 0.5) - 0.75
        tensor([-0.2500])
    """
    place = (2 - odd)[:, None]
    kept = similarities.gather(1, place)[:, 0]
    return similarities.scatter(1, place, -torch.inf).max(1).values - kept


def embedding_distance(embedding: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Compute ||u(x + delta) - u(x)||_2^2 of normalised embeddings (N, D): (N,), the untargeted attack (paper, eq. 6).

    On unit vectors this is 2 - 2 cos, so that raising it lowers the similarity. Its gradient is zero at the clean
    image itself: start elsewhere in the ball.

    Example:
        >>> embedding_distance(torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, 0.0]]))  # 2 - 2 * 0.6
        tensor([0.8000])
    """
    return (embedding - original).square().sum(1)


def targeted_embedding_distance(embedding: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Compute -1/K sum_k ||u(x + delta) - u(t_k)||_2^2: (N,), which rises near the K targets (paper, eq. 5).

    The distance is the squared l_2 distance of normalised embeddings, as in eq. 6: with it, and not with its
    root, eq. 5 maximises the sum of the cosine similarities, as the paper says it does.

    Args:
        embedding: (N, D), normalised.
        targets: (K, D), the same for every image, or (N, K, D); normalised, K at least 1 (the paper has 16).

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> targeted_embedding_distance(torch.tensor([[1.0, 0.0]]), torch.eye(2))  # there, and at a right angle
        tensor([-1.])
    """
    count, size = embedding.shape
    shared = targets.ndim == 2
    if (
        not (shared or (targets.ndim == 3 and len(targets) == count))
        or targets.shape[-1] != size
        or not targets.numel()
    ):
        raise ValueError(
            f"targets must be (K, {size}) or ({count}, K, {size}), K at least 1, and they are {tuple(targets.shape)}"
        )
    return -(embedding[:, None] - targets).square().sum(2).mean(1)  # (N, K, D) -> (N,)


def cross_entropy(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Compute -z_y + log sum_k exp(z_k) of the logits z (N, K) and labels y (N,): (N,).

    Example:
        >>> cross_entropy(torch.zeros(1, 8), torch.tensor([3]))  # log 8
        tensor([2.0794])
    """
    return F.cross_entropy(logits, label, reduction="none")


def dlr(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Compute the difference of logits ratio, -(z_y - max_{k != y} z_k) / (z_(1) - z_(3)): (N,), positive where fooled.

    z_(1) >= z_(2) >= ... are the sorted logits. Neither a shift nor a scale of the logits changes it (Croce & Hein
    2020). Where the top three are equal the denominator counts as 1e-12 and passes no gradient.

    Args:
        logits: (N, K), K at least 3.
        label: (N,).

    Raises:
        ValueError: for fewer than three classes.

    Example:
        >>> dlr(torch.tensor([[4.0, 3.0, 2.0, 0.0]]), torch.tensor([0]))  # -(4 - 3) / (4 - 2)
        tensor([-0.5000])
    """
    if logits.shape[1] < 3:
        raise ValueError(
            f"the DLR loss needs at least 3 classes and the logits have {logits.shape[1]}: use cross_entropy, or for "
            "two choices the negative of two_afc_margin"
        )
    floor, logits = _floored(logits)
    own = logits.gather(1, label[:, None])[:, 0]
    rival = logits.scatter(1, label[:, None], -torch.inf).max(1).values
    top = logits.topk(3, dim=1).values
    return (rival - own) / (top[:, 0] - top[:, 2]).clamp(min=floor)


def targeted_dlr(logits: torch.Tensor, label: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Compute the targeted difference of logits ratio, -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2): (N,).

    Positive where the target t outranks the label y. Invariant and guarded like `dlr` (Croce & Hein 2020).

    Args:
        logits: (N, K), K at least 4.
        label: (N,).
        target: (N,), the class to reach.

    Raises:
        ValueError: for fewer than four classes.

    Example:
        >>> targeted_dlr(torch.tensor([[4.0, 3.0, 2.0, 0.0]]), torch.tensor([0]), torch.tensor([3]))  # -4 / (4 - 1)
        tensor([-1.3333])
    """
    if logits.shape[1] < 4:
        raise ValueError(
            f"the targeted DLR loss needs at least 4 classes and the logits have {logits.shape[1]}: use dlr, which "
            "needs 3, or cross_entropy"
        )
    floor, logits = _floored(logits)
    own = logits.gather(1, label[:, None])[:, 0]
    aim = logits.gather(1, target[:, None])[:, 0]
    top = logits.topk(4, dim=1).values
    return (aim - own) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp(min=floor)


def _floored(logits: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Give the smallest denominator whose inverse the logits' dtype can hold, and the logits as float32 or wider."""
    floor = max(1e-12, 2 / torch.finfo(logits.dtype).max)  # 1e-12, but 3e-5 in float16
    return floor, logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
