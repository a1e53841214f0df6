"""The tokenizer of the scenes' captions: a closed vocabulary, a number per word."""

from __future__ import annotations

import torch

from rclip_metric.train.data.scenes.draw import VOCABULARY

CONTEXT = 40  # tokens; the longest caption has 38 with its start and end


class WordTokenizer:
    """Captions of a closed vocabulary as OpenCLIP's text tower reads them: start, words, end (highest id), zeros.

    Example:
        >>> tokenizer = WordTokenizer()
        >>> tokens = tokenizer(["a red star"])
        >>> tokens.shape, int(tokens[0].argmax())  # the end comes after the start and three words
        (torch.Size([1, 40]), 4)
    """

    def __init__(self) -> None:
        """Number the words of the scenes' vocabulary from 1."""
        self.ids = {word: number for number, word in enumerate(VOCABULARY, start=1)}
        self.start, self.end = len(self.ids) + 1, len(self.ids) + 2
        self.size = self.end + 1

    def __call__(self, captions: list[str]) -> torch.Tensor:
        """Tokenise; returns int64 (N, 40).

        Raises:
            ValueError: for a word outside the vocabulary or a caption that is too long.
        """
        tokens = torch.zeros(len(captions), CONTEXT, dtype=torch.long)
        for row, text in enumerate(captions):
            words = text.lower().split()
            unknown = [word for word in words if word not in self.ids]
            if unknown or len(words) > CONTEXT - 2:
                problem = f"the word {unknown[0]!r}" if unknown else f"{len(words)} words"
                raise ValueError(f"caption {text!r} has {problem}: use at most {CONTEXT - 2} words of the scenes' own")
            numbers = [self.start, *(self.ids[word] for word in words), self.end]
            tokens[row, : len(numbers)] = torch.tensor(numbers)
        return tokens
