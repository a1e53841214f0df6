"""What MkDocs must know of this repository: pages that lie beside docs/, links out of it, and rclip_metric.train.

Links are written as they work in the repository. On the site, a file outside docs/ that a page links is copied to
`repository/`, so that nothing is looked for on any server. A link to nothing is a warning, which `--strict` refuses.
"""

import logging
import posixpath
import re
import tempfile
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LOG = logging.getLogger("mkdocs.plugins.hooks")
ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "index.md": ROOT / "README.md",
    "contributing.md": ROOT / "CONTRIBUTING.md",
    "security.md": ROOT / "SECURITY.md",
    "changelog.md": ROOT / "CHANGELOG.md",
}
_FENCE = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()([^()\s]+)(\))")
_sources: list[tempfile.TemporaryDirectory[str]] = []  # as long as the process: griffe reads them late


class Examples(griffe.Extension):
    """Read a section `Example:` as `Examples:`, the one that griffe knows to be code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Rename the section in a docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show griffe, which reads sources without importing them, a package in which train/ is rclip_metric/train/."""
    _sources.append(tempfile.TemporaryDirectory(prefix="rclip-metric-docs-"))
    package = Path(_sources[-1].name, "rclip_metric")
    package.mkdir()
    for source in (ROOT / "rclip_metric").iterdir():
        (package / source.name).symlink_to(source)
    (package / "train").symlink_to(ROOT / "train")
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(package.parent)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are written beside docs/, README.md as the first one."""
    for uri, source in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links of the site."""
    assert page.file.abs_src_path is not None
    source, uris = Path(page.file.abs_src_path), {path: uri for uri, path in PAGES.items()}

    def rewritten(match: re.Match[str]) -> str:
        target, mark, anchor = match[2].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = (source.parent / target).resolve()
        if path in uris:
            uri = uris[path]
        elif path.is_relative_to(config.docs_dir):
            uri = path.relative_to(config.docs_dir).as_posix()
        elif path.is_file():
            uri = f"repository/{path.relative_to(ROOT).as_posix()}"
            uri += ".txt" if path.suffix in (".md", ".py") else ""
            if files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(path)))
        else:
            LOG.warning("%s links %s, and there is no such file", page.file.src_uri, match[2])
            return match[0]
        here = posixpath.dirname(page.file.src_uri)
        return f"{match[1]}{posixpath.relpath(uri, here or '.')}{mark}{anchor}{match[3]}"

    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(rewritten, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(rewritten, markdown[end:])])
