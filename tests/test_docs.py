"""The documentation builds without a warning or a network, its links lead somewhere, and what it shows is so."""

import contextlib
import html.parser
import importlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rclip_metric import RobustPerceptualDistance
from rclip_metric.cli.main import main

from support.pages import PAGES, ROOT, Block, anchors, blocks, commands, links, same_print

ALL = [block for page in PAGES for block in blocks(page)]
SHOWN = [page for page in PAGES if any(b.language == "python" or b.output is not None for b in blocks(page))]


def name(thing: Any) -> str:
    return thing.relative_to(ROOT).as_posix() if isinstance(thing, Path) else str(thing)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run blocks in, which holds the repository's examples."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(block: Block, names: dict[str, Any]) -> None:
    """Run a block and compare what it prints with what the page says."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), names)
        else:
            for words in map(arguments, commands(block)):
                assert words is not None and main(words) == 0, f"{block}: {words}"
    if block.output is not None:
        assert same_print(printed.getvalue(), block.output), f"{block} printed:\n{printed.getvalue()}"


@pytest.mark.parametrize("page", SHOWN, ids=name)
def test_the_blocks_of_a_page_run_and_print_what_it_says(page, place):
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if not block.needs and (block.language == "python" or (block.language == "sh" and block.output is not None)):
            run(block, names)


@pytest.mark.parametrize("block", [block for block in ALL if block.needs], ids=name)
def test_a_block_that_needs_more_runs_where_that_is_installed(block, place):
    for module in block.needs:
        with contextlib.suppress(ModuleNotFoundError):  # of a parent package
            if importlib.util.find_spec(module) is not None:
                continue
        pytest.skip(f"needs {module}")
    run(block, {"__name__": "page"})


def arguments(line: str) -> list[str] | None:
    """The words after `rclip-metric` in a command line, None for another command."""
    words = shlex.split(line, comments=True)
    if "rclip_metric" in words:  # torchrun ... -m rclip_metric, python -m rclip_metric
        return words[words.index("rclip_metric") + 1 :]
    while words and "=" in words[0]:  # variables of the environment
        words.pop(0)
    return words[1:] if words[:1] == ["rclip-metric"] else None


def parsed(words: list[str]) -> None:
    """Have the command's own parser read the words; SystemExit where it would refuse them."""
    from rclip_metric.cli.main import _ELSEWHERE, _parser

    if words[0] not in _ELSEWHERE:
        _parser().parse_args(words)
        return
    module = importlib.import_module(_ELSEWHERE[words[0]])
    if words[0] == "train":
        module.build_parser(words[1]).parse_args(words)
    elif words[0] == "eval":
        module.build_parser(module.TASKS).parse_args(words)
    else:
        wants = [words[0]] if words[0] in ("invert", "imagine") else []
        module.build_parser(*wants).parse_args(words[1:])


@pytest.mark.parametrize("block", [b for b in ALL if b.language in ("sh", "")], ids=name)
def test_every_command_that_is_shown_has_such_options(block):
    for line in commands(block):
        words = arguments(line)
        if words is not None:
            try:
                parsed(words)
            except SystemExit as stop:
                raise AssertionError(f"{block} shows a command that is refused: {line}") from stop
        for script in re.findall(r"\S+\.py\b", line):
            assert (ROOT / script).exists(), f"{block} runs {script}"


def test_a_command_with_an_option_that_is_not_there_would_be_noticed():
    for words in (
        "rank a b --nearest",
        "eval nights --data X --epsilon 4/255",
        "train fare --imagez X",
        "benchmark -z",
    ):
        with pytest.raises(SystemExit):
            parsed(words.split())
    assert same_print("0.2003  a.jpg", "0.2001  a.jpg\n") and not same_print("0.2003  a.jpg", "0.2103  a.jpg")
    assert not same_print("0.2003  a.jpg", "0.2003  b.jpg")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_to_a_file_and_an_anchor_of_this_repository(page):
    for link in links(page):
        target, _, anchor = link.partition("#")
        assert not re.match(r"(?!https?:|mailto:)\w+:", target), link
        if re.match(r"\w+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        generated = ROOT / "docs"  # the site has pages of what lies beside docs/
        assert path.exists() and path.is_relative_to(ROOT), f"{name(page)} links {link}"
        assert not path.is_dir(), f"{name(page)} links a folder, which the site cannot show: {link}"
        if anchor and path.suffix == ".md" and path.is_relative_to(generated):
            assert anchor in anchors(path), f"{name(page)} links {link}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_file_that_is_named_in_code_exists(page):
    """Also what is no link: `results/x.json`, `tests/test_x.py`."""
    text = page.read_text(encoding="utf-8")
    pattern = r"(?<![\w/.-])(?:examples|results|rclip_metric|tests|train|docs)/[\w./-]+\.(?:py|png|jpg|json|md|html)"
    for path in re.findall(pattern, text):
        assert (ROOT / path).exists(), f"{name(page)} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_test_that_is_named_exists(page):
    for path, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8")):
        assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), f"{name(page)} names {path}::{test}"


def test_every_question_of_the_field_has_its_test():
    answers = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8").split("\n## ")[1:]
    assert len(answers) >= 20
    assert [answer.splitlines()[0] for answer in answers[:-1] if "::test_" not in answer] == []


def test_every_cell_of_the_table_of_other_metrics_runs_and_is_as_large_as_it_says(place):
    """The column `here`, with r-lite-f for the default model, which nobody could load here."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme[readme.index("## Coming from another metric") : readme.index("## Models")]
    rows = [row.split(" | ")[2] for row in table.splitlines() if row.count(" | ") == 2][1:]
    cells = [cell for row in rows if (cell := re.findall(r"`([^`]+)`", row)[0]).split()[0] not in ("import", "from")]
    assert len(cells) == 6  # the drop-ins are imported in test_migration.py
    metric = RobustPerceptualDistance("r-lite-f")
    x, y = torch.rand(2, 2, 3, 32, 48, generator=torch.Generator().manual_seed(0)).unbind(0)
    a, b = (f"examples/images/photo-{word}.jpg" for word in ("reference", "closer"))
    names = {"metric": metric, "x": x, "y": y, "a": a, "b": b}
    if importlib.util.find_spec("torchmetrics") is not None:
        from rclip_metric.torchmetric import RobustPerceptualDistanceMetric

        names["RobustPerceptualDistanceMetric"] = RobustPerceptualDistanceMetric
    else:
        cells = [cell for cell in cells if "DistanceMetric(" not in cell]
    found = {cell: eval(cell, names) for cell in cells}
    u, v = metric.embed(x), metric.embed(y)
    distance = (1 - (u * v).sum(1)).sqrt()
    assert torch.allclose(found["metric(x, y)"], distance, atol=1e-4)
    assert found["metric.difference_map(x, y)"].shape == (2, 32, 48)
    [squared] = [value for cell, value in found.items() if cell.endswith("** 2")]
    u, v = metric.embed(metric.preprocess(a)), metric.embed(metric.preprocess(b))
    assert torch.allclose(squared, 1 - (u * v).sum(1), atol=1e-4)
    assert torch.equal(found["metric.embed(metric.preprocess(a))"], u)
    for running in [value for cell, value in found.items() if cell.startswith("RobustPerceptualDistanceMetric")]:
        running.update(x, y)
        assert torch.allclose(running.compute(), distance.mean(), atol=1e-4)


class Loaded(html.parser.HTMLParser):
    """What a browser fetches to show a page, and where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.linked: list[str] = []
        self.ids: set[str] = set()
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.tags.add(tag)
        self.ids |= {given[key] for key in ("id", "name") if key in given}
        if tag in ("script", "img", "iframe", "source", "video") and "src" in given:
            self.fetched.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "preconnect", "icon", "preload", "modulepreload"):
            self.fetched.append(given["href"])
        if tag == "a" and "href" in given:
            self.linked.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation as it is built."""
    for module in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        with contextlib.suppress(ModuleNotFoundError):
            if importlib.util.find_spec(module) is not None:
                continue
        pytest.skip(f'needs {module}: pip install "rclip-metric[docs]"')
    out = tmp_path_factory.mktemp("site")
    # No proxy answers there: a build that asks a server for anything fails.
    offline = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")} | {"no_proxy": ""}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | offline, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return out


def test_the_site_fetches_nothing_from_elsewhere_and_no_link_of_it_is_dead(site):
    pages = {path: Loaded(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    own = {path: page for path, page in pages.items() if "repository" not in path.relative_to(site).parts}
    assert len(own) > 30
    for path, page in own.items():
        assert all(tag.isalnum() for tag in page.tags), f"{path.name} has {page.tags}: <u, v> belongs in backticks"
        for address in page.fetched:
            assert not re.match(r"(\w+:)?//", address), f"{path.name} fetches {address}"
        for address in page.fetched + page.linked:
            target, _, anchor = address.partition("#")
            if re.match(r"\w+:", target) or path.name == "404.html":
                continue
            found = (path.parent / target).resolve() if target else path
            found = found / "index.html" if found.is_dir() else found
            assert found.exists(), f"{path.name} links {address}"
            if anchor and found in own:
                assert anchor in own[found].ids, f"{path.name} links {address}"


def test_the_reference_shows_signatures_and_examples_of_both_packages(site):
    for page, words in {
        "api/metric.html": ("RobustPerceptualDistance", "two_afc", "difference_map", "Example"),
        "api/attacks.html": ("LpBall", "apgd", "square"),
    }.items():
        text = (site / page).read_text(encoding="utf-8")
        assert all(word in text for word in words), page
        assert text.count('language-pycon highlight"') > 5, "examples are shown as code"
    modules = set()  # a function that has the name of its module is not to be taken for the module
    for page in (site / "api").iterdir():
        modules |= set(re.findall(r'doc-module-name">(\w+)', page.read_text(encoding="utf-8")))
    assert modules == {"errors"}
