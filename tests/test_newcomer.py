"""The newcomer's log finds README's blocks and reads pip's sizes."""

from pathlib import Path

from support.programs import load_example

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_blocks_that_a_newcomer_runs_are_in_the_readme() -> None:
    program = load_example("newcomer")
    commands, shown = program.block(README, "Two commands", "sh")
    assert [line.split()[:2] for line in commands.splitlines()] == [["rclip-metric", "score"], ["rclip-metric", "rank"]]
    assert program.same(shown, shown) and not program.same(shown, shown.replace("0.2003", "0.3003"))
    lines, _ = program.block(README, "Six lines of Python", "python")
    assert len([line for line in lines.splitlines() if line]) == 5


def test_sizes_are_those_that_pip_says() -> None:
    log = "  Downloading https://host/a-1.whl (531.2 MB)\n  Downloading b.tar.gz (12 kB)\nUsing cached c.whl (1 MB)\n"
    assert load_example("newcomer").downloads(log) == {"a-1.whl": 531_200_000, "b.tar.gz": 12_000}
