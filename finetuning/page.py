"""report.html, one file with its pictures inside: what tasks put on it, and how it is made of page.html."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd

MISTAKES = 20  # of each kind on the page
CHUNK = 250  # rows whose texts are in memory at a time, each with some 64 KiB of the file around it


@dataclass(frozen=True)
class Mistake:
    """A line to read, and what stands below when it is opened; `share` is how sure the model was, if it is said."""

    share: float | None
    line: str
    text: str


@dataclass(frozen=True)
class Section:
    """A part of the page. Text is escaped; of `markupsafe.Markup` it is not."""

    title: str = ""
    text: str = ""
    pictures: tuple[tuple[str, str], ...] = ()  # (name of the .png, what it shows)
    figures: tuple[tuple[str, str, str], ...] = ()  # (name, value, remark)
    mistakes: tuple[tuple[str, list[Mistake]], ...] = ()  # by kind


def render(folder: Path, sections: list[Section], **about) -> str:
    """The page with the pictures that lie in `folder`."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    images = {file.stem: "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode() for file in folder.glob("*.png")}
    return environment.get_template("page.html").render(sections=sections, images=images, **about)


def write_csv(path: Path, positions: np.ndarray, rows_at: Callable[[np.ndarray], pd.DataFrame]) -> None:
    """What `rows_at` says of `positions`, a chunk at a time: their texts may be too many for the memory."""
    for start in range(0, max(len(positions), 1), CHUNK):
        rows_at(positions[start : start + CHUNK]).to_csv(path, mode="a", header=start == 0, index=False)
