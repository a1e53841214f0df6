"""The text tower of a CLIP, the optional part that only zero-shot classification needs.

Its state dict has the keys `text.*` and `logit_scale`, which is how OpenCLIP's CustomTextCLIP names them; the plain
CLIP class has the same keys without `text.`, beside those of its vision tower.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rclip_metric.distance import normalize
from rclip_metric.encoder import key_report
from rclip_metric.errors import CheckpointError
from rclip_metric.progress import progress

NOT_TEXT = re.compile(r"visual\..+|(text\.)?attn_mask|input_resolution|context_length|vocab_size")
"""Keys of a whole CLIP's checkpoint that do not belong to its text tower."""

_HEAD_WIDTH = 64  # of every published CLIP's text tower


@dataclass(frozen=True)
class TextConfig:
    """The shape of a text tower; `quick_gelu` for the weights that OpenAI trained."""

    context: int
    vocabulary: int
    width: int
    layers: int
    heads: int
    embedding_dim: int
    quick_gelu: bool = False


class TextTower(nn.Module):
    """OpenCLIP's text transformer: tokens (N, L) -> unnormalised embeddings (N, D).

    Attributes:
        text: open_clip's TextTransformer.
        logit_scale: the logarithm of CLIP's factor on similarities, log(100) until weights are loaded.
    """

    def __init__(self, config: TextConfig) -> None:
        """Build with random weights, or with none under `with torch.device("meta")`."""
        super().__init__()
        from open_clip.transformer import QuickGELU, TextTransformer

        self.config = config
        self.text = TextTransformer(
            context_length=config.context,
            vocab_size=config.vocabulary,
            width=config.width,
            heads=config.heads,
            layers=config.layers,
            output_dim=config.embedding_dim,
            act_layer=QuickGELU if config.quick_gelu else nn.GELU,
        )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(100.0)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed token ids as CLIP does, at the end token, which has the highest id.

        No token sees those after it, so only the columns up to the last end token are worked through: for the usual
        prompts that is a fifth of the 77.
        """
        text: Any = self.text
        ends = tokens.argmax(1)
        length = int(ends.max()) + 1
        x = text.token_embedding(tokens[:, :length]) + text.positional_embedding[:length]  # (N, length, width)
        x = text.transformer(x, attn_mask=text.attn_mask[:length, :length])
        x = text.ln_final(x[torch.arange(len(x), device=x.device), ends])  # (N, width)
        return x @ text.text_projection


@dataclass(frozen=True)
class TextModel:
    """A text tower with its tokenizer; `source` says which weights they are, and is quoted with every result.

    Example:
        >>> from rclip_metric.train.models import load_text
        >>> text = load_text("tiny-clean")
        >>> text.embed(["a photo of a red star"]).norm(dim=1).round(decimals=4)
        tensor([1.])
    """

    tower: TextTower
    tokenizer: Callable[[list[str]], Tensor]
    source: str

    @property
    def scale(self) -> float:
        """The factor on similarities that makes them logits."""
        return self.tower.logit_scale.exp().item()

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embed texts without a graph: unit embeddings (N, D)."""
        tokens = self.tokenizer(list(texts)).to(self.tower.logit_scale.device)
        with torch.no_grad():
            return normalize(self.tower(tokens))


def class_embeddings(
    text: TextModel, words: Sequence[str], templates: Sequence[str], *, batch_size: int = 512, quiet: bool = False
) -> Tensor:
    """Embed classes, one unit embedding each, (K, D): the mean over the templates' unit embeddings, normalised again.

    Args:
        text: the text model.
        words: what to call each class.
        templates: texts with one `{}` in the place of the class.
        batch_size: texts at a time.
        quiet: no progress bar.

    Example:
        >>> from rclip_metric.train.models import load_text
        >>> text = load_text("tiny-clean")
        >>> classes = class_embeddings(text, ["star", "circle"], ["a photo of a {}", "{}"], quiet=True)
        >>> classes.norm(dim=1).round(decimals=4)
        tensor([1., 1.])
    """
    group = max(1, batch_size // len(templates))
    means = []
    for first in progress(range(0, len(words), group), label="class prompts", unit="batch", quiet=quiet):
        chunk = words[first : first + group]
        texts = [template.replace("{}", word) for word in chunk for template in templates]
        means.append(text.embed(texts).view(len(chunk), len(templates), -1).mean(1))
    return normalize(torch.cat(means))


def build_text(state: Mapping[str, Tensor], *, heads: int | None = None, quick_gelu: bool = False) -> TextTower:
    """Build a text tower around a checkpoint's tensors, strictly.

    Args:
        state: CLIP's or CustomTextCLIP's keys; those of the vision tower may be there and are not looked at. Half
            precision is widened to float32. Without a `logit_scale` the factor is 100.
        heads: attention heads, which the shapes do not tell; None for one per 64 channels, as published CLIPs have.
        quick_gelu: the activation, which the shapes do not tell either.

    Raises:
        CheckpointError: names the keys that are missing or unexpected, or the key whose shape is wrong.
    """
    kept = {key: tensor for key, tensor in state.items() if not NOT_TEXT.fullmatch(key)}
    prefix = "" if any(key.startswith("text.") for key in kept) else "text."
    kept = {key if key == "logit_scale" else prefix + key: tensor for key, tensor in kept.items()}
    config = _infer(kept, heads, quick_gelu)
    import open_clip.transformer  # noqa: F401 (importing computes tensors, which fails under the meta device)

    with torch.device("meta"):
        tower = TextTower(config)
    scale = kept.get("logit_scale", torch.tensor(math.log(100.0)))
    kept["logit_scale"] = scale.reshape(()) if scale.numel() == 1 else scale
    expected = {key: tensor.shape for key, tensor in tower.state_dict().items()}
    _require_keys(expected, kept)
    for key, shape in expected.items():
        if kept[key].shape != shape:
            raise CheckpointError(
                f"The shape of the text tower's {key} is {tuple(kept[key].shape)}, expected {tuple(shape)}."
            )
    tower.load_state_dict({key: tensor.float() for key, tensor in kept.items()}, strict=True, assign=True)
    text: Any = tower.text
    text.attn_mask = text.build_causal_mask()
    return tower.requires_grad_(False).eval()


def _infer(state: Mapping[str, Tensor], heads: int | None, quick_gelu: bool) -> TextConfig:
    needed = ("text.token_embedding.weight", "text.positional_embedding", "text.text_projection")
    if missing := [key for key in needed if key not in state]:
        raise CheckpointError(f"The checkpoint does not hold a CLIP's text tower: {key_report(missing, ())}.")
    (vocabulary, width), context = state[needed[0]].shape, len(state[needed[1]])
    blocks = [int(match[1]) for key in state if (match := re.match(r"text\.transformer\.resblocks\.(\d+)\.", key))]
    if heads is None and width % _HEAD_WIDTH:
        raise CheckpointError(
            f"The text tower is {width} wide, which is no multiple of {_HEAD_WIDTH}: the file must say its heads."
        )
    return TextConfig(
        context=context,
        vocabulary=vocabulary,
        width=width,
        layers=max(blocks, default=-1) + 1,
        heads=heads or width // _HEAD_WIDTH,
        embedding_dim=state[needed[2]].shape[-1],
        quick_gelu=quick_gelu,
    )


def _require_keys(expected: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    if missing or unexpected:
        raise CheckpointError(f"The checkpoint does not fit CLIP's text tower: {key_report(missing, unexpected)}.")
