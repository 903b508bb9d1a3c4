"""The READMEs say what the records and the code say."""

import re
import sys
from dataclasses import fields

import numpy as np
import pytest
from conftest import ROOT

from config import PRESETS, Config
from finetuning.model.architectures import ARCHITECTURES
from finetuning.results import metrics
from finetuning.results.label_report import ACCURACY

sys.path.append(str(ROOT / "benchmarks"))
import quality  # noqa: E402
import tables  # noqa: E402

PAGES_OF_DOCS = ("learn", "data", "tasks", "scale", "speed")

README, *DOCS = ((ROOT / page).read_text() for page in ("README.md", *(f"docs/{name}.md" for name in PAGES_OF_DOCS)))


@pytest.mark.parametrize("page", tables.PAGES)
def test_its_numbers_are_those_the_records_give(page):
    assert tables.filled(page) == (ROOT / page).read_text(), "run python benchmarks/tables.py"


@pytest.mark.parametrize("page", tables.PAGES)
def test_its_marks_are_complete_and_leave_markdown_as_it_is(page):
    text = (ROOT / page).read_text()
    assert text.count("<!-- v:") == len(tables.VALUE.findall(text)) == text.count("<!-- /v -->")
    assert text.count("<!-- rows:") == len(tables.ROWS_OF_TABLE.findall(text)) == text.count("<!-- /rows -->")
    assert not re.search(r"^ *<!-- v:", text, flags=re.MULTILINE), "a comment that begins a line makes all of the line HTML"


def test_results_name_each_architecture():
    section = (ROOT / "results/README.md").read_text().partition("## Architectures\n")[2].partition("\n## ")[0]
    assert {*ARCHITECTURES} <= {*re.findall(r"[\w-]+", section)}


def test_every_experiment_has_its_record():
    missing = ["/".join(map(str, run)) for run in quality.runs([]) if not quality.record_file(*run).exists()]
    assert not missing, "run python benchmarks/quality.py, then python benchmarks/tables.py"


def test_every_flag_preset_and_file_it_names_is_there():
    flags = {"preset", "resume", "search", "json", "file", "out", "explain", "run", "help", "push_to_hub"}
    flags |= {"formats", "private", "max_new_tokens", "temperature", "top_p", "index"}
    flags |= {"nproc_per_node", "nnodes", "node_rank", "master_addr", "rdzv_backend", "rdzv_id", "rdzv_endpoint"}  # torchrun's
    names = {field.name for field in fields(Config)} | flags
    commands = "\n".join(re.findall(r"```bash\n(.*?)```", "\n".join([README, *DOCS]), flags=re.DOTALL))
    assert set(re.findall(r"--(\w+)", commands)) <= names
    assert max(map(len, commands.splitlines())) <= 90, "no line runs out of its box"
    assert set(re.findall(r"--preset (\w+)", commands)) <= set(PRESETS)
    for path in re.findall(r"`((?:finetuning|tests|benchmarks|results|outputs|docs)/[\w.]*|\w+\.(?:py|txt))`", README):
        assert (ROOT / path).exists(), path
    for page, text in zip(("", *["docs"] * len(DOCS)), (README, *DOCS), strict=True):
        for path in re.findall(r"\]\(([^)#:]+)[)#]", text):
            assert (ROOT / page / path).exists(), path


def test_experiments_are_compared_row_by_row_and_seed_by_seed():
    a = [dict(n=100, wrong="1 7"), dict(n=100, wrong="")]
    b = [dict(n=100, wrong="7 20 30 40 50 60 70 80"), dict(n=100, wrong="20 30")]
    statistics = quality.statistics_of([*a, *b])
    result = metrics.difference(ACCURACY, statistics[:2], statistics[2:])
    assert result["difference"] == pytest.approx((6 + 2) / 200)
    assert result["mcnemar_p"] == pytest.approx([2 * (1 + 8) / 2**8, 0.5])  # seed 0: one row against seven; seed 1: none against two


def test_records_keep_the_statistics_of_their_rows():
    statistics = {"rows": np.ones(3), "loss": np.array([0.25, 1e-6, 12.5]), "actual": np.array([[1, 0], [0, 2], [3, 1]])}
    (read,) = quality.statistics_of([dict(n=3, statistics=quality.as_text(statistics))])
    assert read.keys() == statistics.keys()
    for name, values in statistics.items():
        np.testing.assert_array_equal(read[name], values)


def test_records_of_two_forms_are_not_compared():
    with pytest.raises(ValueError, match="measure both anew"):
        quality.statistics_of([dict(n=2, wrong="0"), dict(n=2, statistics={"correct": "0 1"})])
