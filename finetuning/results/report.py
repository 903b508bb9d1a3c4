"""report.html, one file with its pictures inside: what tasks put on it as data, and how it is rendered."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd

MAX_EXAMPLES = 20  # of each kind on the page
ROWS_AT_A_TIME = 250  # whose texts are in memory, each with some 64 KiB of the file around it

Spans = list[tuple[str, str | None]]  # a text in pieces, each with a label or None: "Angela Merkel" is a "PER"


@dataclass(frozen=True)
class Example:
    """A line to read, and what is shown below it when it is opened."""

    line: str
    text: str = ""
    sides: tuple[tuple[str, str | Spans], ...] = ()  # in place of the text: (heading, text) side by side
    probability: float | None = None  # of the model's answer


@dataclass(frozen=True)
class Picture:
    """A picture; `draw` writes it as PNG to a path. Its file is called `name`.png."""

    name: str
    caption: str
    draw: Callable[[Path], None]


@dataclass(frozen=True)
class Table:
    """Cells as text, under `columns`; the first column is aligned left, the others right."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    in_terminal: bool = False  # evaluate.py prints it too


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str = ""
    text: str = ""
    numbers: tuple[tuple[str, str, str], ...] = ()  # (name, value, remark)
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    examples: tuple[tuple[str, list[Example]], ...] = ()  # (kind, its examples)


def show_spans(spans: Spans) -> str:
    """Return a text with its labelled pieces in brackets: "[Angela Merkel PER] flew"."""
    return "".join(text if label is None else f"[{text} {label}]" for text, label in spans)


def render(folder: Path, sections: list[Section], **variables) -> str:
    """Return the page; draws its pictures into `folder` and embeds them."""
    for section in sections:
        for picture in section.pictures:
            picture.draw(folder / f"{picture.name}.png")
    encoded = {file.stem: base64.b64encode(file.read_bytes()).decode() for file in folder.glob("*.png")}
    images = {name: f"data:image/png;base64,{content}" for name, content in encoded.items()}
    return template("report.html.jinja").render(sections=sections, images=images, **variables)


def template(name: str) -> jinja2.Template:
    """Return one of results/templates/; HTML is escaped, other files are not."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    escape = name.endswith(".html.jinja")
    environment = jinja2.Environment(loader=loader, autoescape=escape, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(name)


def write_csv(path: Path, positions: np.ndarray, lines_of: Callable[[np.ndarray], pd.DataFrame]) -> None:
    """Write the lines that `lines_of` gives for `positions`, some at a time: their texts may not fit into memory."""
    for start in range(0, max(len(positions), 1), ROWS_AT_A_TIME):
        lines = lines_of(positions[start : start + ROWS_AT_A_TIME])
        lines.to_csv(path, mode="a", header=start == 0, index=False)
