"""The READMEs say what the records and the code say."""

import re
import sys
from dataclasses import fields

import pytest
from conftest import ROOT

from config import PRESETS, Config
from finetuning.results import metrics
from finetuning.tasks.classification import SingleLabel

sys.path.append(str(ROOT / "benchmarks"))
import quality  # noqa: E402
import tables  # noqa: E402

README, *DOCS = ((ROOT / page).read_text() for page in ("README.md", "docs/learn.md", "docs/data.md"))


@pytest.mark.parametrize("page", tables.PAGES)
def test_its_tables_are_those_the_records_give(page):
    assert tables.filled(page) == (ROOT / page).read_text(), "run python benchmarks/tables.py"


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
    assert set(re.findall(r"--preset (\w+)", README)) <= set(PRESETS)
    for path in re.findall(r"`((?:finetuning|tests|benchmarks|results|outputs|docs)/[\w.]*|\w+\.(?:py|txt))`", README):
        assert (ROOT / path).exists(), path
    for page, text in zip(("", "docs", "docs"), (README, *DOCS), strict=True):
        for path in re.findall(r"\]\(([^)#:]+)[)#]", text):
            assert (ROOT / page / path).exists(), path


def test_experiments_are_compared_row_by_row_and_seed_by_seed():
    a = [dict(n=100, wrong="1 7"), dict(n=100, wrong="")]
    b = [dict(n=100, wrong="7 20 30 40 50 60 70 80"), dict(n=100, wrong="20 30")]
    statistics = quality.statistics_of(a + b)
    result = metrics.difference(SingleLabel.metrics[0], statistics[:2], statistics[2:])
    assert result["difference"] == pytest.approx((6 + 2) / 200)
    assert result["mcnemar_p"] == pytest.approx([2 * (1 + 8) / 2**8, 0.5])  # seed 0: one row against seven; seed 1: none against two
