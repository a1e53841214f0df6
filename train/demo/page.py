"""The page of the demo, in Gradio."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from rclip_metric.errors import ImageError, MissingPackageError
from rclip_metric.images.heat import COLOURS
from rclip_metric.train.demo.answers import PAIRS, UPLOADS, Limits, attack, compare, draw_examples

_KEPT = 3600  # seconds that uploads are kept


class _Visited(Protocol):
    """What answers a press of a button."""

    def __call__(self, a: Any, b: Any, kind: str, limits: Limits) -> Any:
        """Compute for two uploads of a kind."""


def build(limits: Limits, folder: Path) -> Any:
    """Lay out the page.

    Args:
        limits: What it does at most.
        folder: For examples, which are drawn here, uploads and pictures that are shown.

    Returns:
        `gradio.Blocks`, to be queued and launched.

    Raises:
        MissingPackageError: Gradio is not installed.
    """
    # Gradio reads both when it is imported, and later.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", UPLOADS: str(folder / "uploads")}
    try:
        import gradio as gr
    except ImportError as error:
        raise MissingPackageError(
            'the demo needs Gradio, which is an extra: pip install "rclip-metric[demo]"'
        ) from error

    # Uploads come as they are: Gradio would decode them, however large, before they are seen here.
    as_they_are: dict[str, Any] = {"preprocess": False, "concurrency_limit": 1, "concurrency_id": "model"}
    buttons: Any = ["download", "fullscreen"]  # and none to share
    with gr.Blocks(
        title="A perceptual distance that holds up", analytics_enabled=False, delete_cache=(_KEPT, _KEPT)
    ) as page:
        gr.Markdown(
            "# How far apart are two images?\n\n"
            "A distance that agrees with people, and that changes which nobody sees move little: try the attack."
        )
        with gr.Row():
            a, b = (gr.Image(label=name, sources=["upload", "clipboard"], elem_id=f"image-{name}") for name in "AB")
        kind = gr.Radio(list(PAIRS), value=next(iter(PAIRS)), label="Images are")
        gr.Examples([[*draw_examples(folder), "drawn scenes"]], [a, b, kind], cache_examples=False)
        with gr.Row():
            compared, attacked = gr.Button("Compare", variant="primary"), gr.Button("Attack")
        with gr.Row():
            with gr.Column():
                distance = gr.Number(label="Distance", visible=False)  # for the API: unknown, it would be shown as 0
                meaning = gr.Markdown()
            with gr.Column():
                shown = gr.Image(label="Where B differs from A", interactive=False, format="png", buttons=buttons)
                gr.HTML(_legend())
        table = gr.Markdown()
        pictures = gr.Gallery(label="Before and after", columns=3, interactive=False, format="png", buttons=buttons)
        inputs = [a, b, kind]
        compared.click(
            _answering(compare, limits), inputs, [distance, meaning, shown], api_name="compare", **as_they_are
        )
        attacked.click(_answering(attack, limits), inputs, [table, pictures], api_name="attack", **as_they_are)
    page.queue(max_size=limits.waiting, default_concurrency_limit=1)
    return page


def _answering(function: _Visited, limits: Limits) -> Callable[[Any, Any, Any], Any]:
    """Show what is wrong with an image to the visitor, in one sentence."""
    import gradio as gr

    def answer(a: Any, b: Any, kind: Any) -> Any:
        try:
            if kind not in PAIRS:
                raise ImageError(f"the images are {kind!r}, expected {' or '.join(PAIRS)}")
            return function(a, b, kind, limits)
        except ImageError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return answer


def looks() -> dict[str, Any]:
    """Return what `launch` takes: a theme that asks no other server for fonts, and tables that break between words."""
    import gradio as gr

    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return {
        "theme": theme,
        "css": ".prose td, .prose th { word-break: normal; overflow-wrap: normal; padding: .3rem; }",
    }


def _legend() -> str:
    bar = f"linear-gradient(to right, {', '.join(COLOURS)})"
    return (
        '<div style="display:flex;gap:.5rem;align-items:center">alike'
        f'<i style="flex:1;height:.8rem;border-radius:.2rem;background:{bar}"></i>different</div>'
    )
