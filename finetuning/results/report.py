"""report.html: the data from which it is rendered, and the rendering into one file that contains its pictures."""

import base64
import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import numpy as np
import pandas as pd
import pyarrow

if TYPE_CHECKING:
    from finetuning.task import Evaluation, Task

MAX_EXAMPLES = 20  # of each kind on the page
MAX_LINE_CHARACTERS = 100  # of a text, on the line that opens it
ROWS_AT_A_TIME = 250  # rows read at a time: each text loads about 64 KiB of the file

Spans = list[tuple[str, str | None]]  # the pieces of a text with their labels, or None: [("Angela Merkel", "PER"), (" flew", None)]


@dataclass(frozen=True)
class Example:
    """A line, and a text that is shown below it when the reader opens it."""

    line: str
    text: str = ""
    sides: tuple[tuple[str, str | Spans], ...] = ()  # instead of `text`: pairs of (heading, text), shown side by side
    probability: float | None = None  # of the model's answer


@dataclass(frozen=True)
class Picture:
    """A picture in the file `name`.png. `draw` writes it to a path."""

    name: str
    caption: str
    draw: Callable[[Path], None]


@dataclass(frozen=True)
class Table:
    """A table of texts with the headings `columns`. The first column is aligned left, the others right."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    in_terminal: bool = False  # whether evaluate.py prints it too


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    title: str = ""
    text: str = ""
    numbers: tuple[tuple[str, str, str], ...] = ()  # (name, value, remark)
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    examples: tuple[tuple[str, list[Example]], ...] = ()  # (kind, its examples)


def show_spans(spans: Spans) -> str:
    """Return a text with brackets around its labelled pieces: "[Angela Merkel PER] flew"."""
    return "".join(text if label is None else f"[{text} {label}]" for text, label in spans)


def render(folder: Path, sections: list[Section], **variables) -> str:
    """Return the page as HTML. Its pictures are drawn into `folder` and embedded in the page."""
    for section in sections:
        for picture in section.pictures:
            picture.draw(folder / f"{picture.name}.png")
    encoded = {file.stem: base64.b64encode(file.read_bytes()).decode() for file in folder.glob("*.png")}
    images = {name: f"data:image/png;base64,{content}" for name, content in encoded.items()}
    return template("report.html.jinja").render(sections=sections, images=images, **variables)


def template(name: str) -> jinja2.Template:
    """Return the template `name` of results/templates/. Variables are escaped in HTML only."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    escape = name.endswith(".html.jinja")
    options = dict(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)  # an unknown name is an error
    return jinja2.Environment(loader=loader, autoescape=escape, **options).get_template(name)


def lines_of_rows(task: "Task", evaluation: "Evaluation") -> Callable[[np.ndarray], pd.DataFrame]:
    """Return a function that gives the lines of errors.csv for positions in the split: the row's texts and its `columns`."""
    new_names = {"label": "actual", "prediction": "predicted"}
    columns = {new_names.get(name, name): values for name, values in evaluation.columns.items() if name != "logits"}
    table = pyarrow.table({"row": evaluation.split.rows} | columns)
    lists = [field.name for field in table.schema if pyarrow.types.is_list(field.type)]

    def lines_of(positions: np.ndarray) -> pd.DataFrame:
        frame = table.take(positions).to_pandas()
        frame = frame.assign(**{name: frame[name].str.join(", ") for name in lists})
        texts = task.readable(evaluation.split.select(positions).columns())
        return pd.DataFrame({"row": frame.pop("row")} | texts).join(frame)

    return lines_of


def write_csv(path: Path, positions: np.ndarray, lines_of: Callable[[np.ndarray], pd.DataFrame]) -> None:
    """Write the lines that `lines_of` returns for `positions`, some at a time, as all their texts may not fit into memory."""
    for start in range(0, max(len(positions), 1), ROWS_AT_A_TIME):
        lines = lines_of(positions[start : start + ROWS_AT_A_TIME])
        # all texts in quotation marks: pandas would not quote one with a carriage return, which ends a row for readers
        lines.to_csv(path, mode="a", header=start == 0, index=False, quoting=csv.QUOTE_NONNUMERIC)
