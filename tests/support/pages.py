"""The Markdown of the repository: its code blocks, its links, and the anchors of its headings.

Blocks are known by their language. `python` is run, and a `text` block right after it is what it prints; so is a `sh`
block that a `text` block follows. Every other command of a `sh` block is parsed. `<!-- needs: MODULE ... -->` above a
block says what must be installed for it; it is run by itself.
"""

import itertools
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "train" / "README.md"],
    key=lambda path: path.relative_to(ROOT).as_posix(),
)
_FENCE = re.compile(
    r"^(?: *<!-- needs: (?P<needs>[\w. ]+) -->\n)?(?P<indent> *)```(?P<language>\w*)[^\n]*\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(r"(?<![\w.:])\d+\.\d+")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the modules that it needs, and what it is to print."""

    page: Path
    line: int
    language: str
    text: str
    needs: tuple[str, ...] = ()
    output: str | None = None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    matches = list(_FENCE.finditer(text))
    for match, after in itertools.zip_longest(matches, matches[1:]):
        follows = after is not None and after["language"] == "text" and not text[match.end() : after.start()].strip()
        line = text.count("\n", 0, match.start("text")) + 1
        output = textwrap.dedent(after["text"]) if after is not None and follows else None
        needs = tuple((match["needs"] or "").split())
        found.append(Block(page, line, match["language"], textwrap.dedent(match["text"]), needs, output))
    return found


def commands(block: Block) -> list[str]:
    """The commands of a `sh` block, with continued lines joined and those joined by && apart."""
    lines = block.text.replace("\\\n", " ").replace(" && ", "\n").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def same_print(printed: str, written: str) -> bool:
    """Whether two outputs are equal, up to 0.002 in what has a decimal point and to white space."""
    if _NUMBER.sub("#", printed).split() != _NUMBER.sub("#", written).split():
        return False
    pairs = zip(_NUMBER.findall(printed), _NUMBER.findall(written), strict=True)
    return all(abs(float(a) - float(b)) <= 0.002 for a, b in pairs)


def links(page: Path) -> list[str]:
    """What a page links or shows, outside its code."""
    text = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text(encoding="utf-8")))
    return re.findall(r"\]\(([^()\s]+)\)", text)


def anchors(page: Path) -> set[str]:
    """The anchors that headings of a page get, as GitHub and MkDocs both make them of plain words."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}
