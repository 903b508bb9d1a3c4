"""The pages agree with the records and with the code, and their links work."""

import re
import shlex
import sys
from dataclasses import fields

import numpy as np
import pytest
from conftest import ROOT

from config import PRESETS, Config
from finetuning import tasks
from finetuning.cli import parse_config
from finetuning.data.splits import load_data
from finetuning.model.architectures import TESTED
from finetuning.results import metrics
from finetuning.results.label_report import ACCURACY

sys.path.append(str(ROOT / "benchmarks"))
import quality  # noqa: E402
import studies  # noqa: E402
import tables  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKED_PAGES = [*tables.PAGES, "outputs/README.md", *(name for name in ("CONTRIBUTING.md", "AGENTS.md") if (ROOT / name).exists())]
CODE = re.compile(r"```.*?```|`[^`\n]*`", flags=re.DOTALL)
LINK = re.compile(r"""\]\((\S+?)\)|<(?:img|a)[^>]* (?:src|href)="(.*?)\"""")


@pytest.mark.parametrize("page", tables.PAGES)
def test_its_numbers_are_those_the_records_give(page):
    assert tables.filled(page) == (ROOT / page).read_text(encoding="utf-8"), "run python benchmarks/tables.py"


@pytest.mark.parametrize("page", tables.PAGES)
def test_its_marks_are_complete_and_leave_markdown_as_it_is(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count("<!-- v:") == len(tables.VALUE.findall(text)) == text.count("<!-- /v -->")
    assert text.count("<!-- rows:") == len(tables.ROWS_OF_TABLE.findall(text)) == text.count("<!-- /rows -->")
    assert not re.search(r"^ *<!-- v:", text, flags=re.MULTILINE), "a comment that begins a line makes all of the line HTML"


def test_results_name_each_architecture():
    page = (ROOT / "results/architectures.md").read_text(encoding="utf-8")
    assert {*TESTED} <= {*re.findall(r"[\w-]+", page)}


def test_each_page_of_results_is_in_the_index():
    index = (ROOT / "results/README.md").read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "results").glob("*.md") if f"]({page.name})" not in index] == ["README.md"]


def test_a_difference_is_that_to_the_reference_of_its_row():
    """The same experiment stands in two tables, once beside full fine-tuning and once beside TF-IDF."""
    assert any(row["difference"] for row in tables.rows_of("comparison"))  # a row keeps it, and must not keep it in the other table
    for row in tables.rows_of("growth pretrained-test growth comparison baselines"):
        assert row["difference"].startswith(f"{100 * (row['accuracy'] - row['reference']['accuracy']):+.2f} (")


def test_every_experiment_has_its_record_unless_its_study_is_planned():
    missing = {run.study for run in quality.runs([]) if not quality.record_file(*run).exists()}
    assert missing == {*studies.PLANNED}, "run python benchmarks/quality.py, then python benchmarks/tables.py"


def test_every_flag_preset_and_file_it_names_is_there():
    scripts = [*ROOT.glob("*.py"), *(ROOT / "benchmarks").glob("*.py"), ROOT / "finetuning/cli.py", ROOT / "tests/reliability.py"]
    flags = {flag for script in scripts for flag in re.findall(r'"--(\w+)"', script.read_text(encoding="utf-8"))}
    flags |= {"nproc_per_node", "nnodes", "node_rank", "master_addr", "rdzv_backend", "rdzv_id", "rdzv_endpoint"}  # torchrun's
    flags |= {"help", "index"} | {field.name for field in fields(Config)}  # index: pip's --index-url
    flags |= {"num_train_epoch"}  # docs/command-line.md shows the message for this mistake
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in tables.PAGES]
    commands = "\n".join(re.findall(r"```bash\n(.*?)```", "\n".join(texts), flags=re.DOTALL))
    assert set(re.findall(r"--(\w+)", commands)) <= flags
    assert max(map(len, commands.splitlines())) <= 95, "no line runs out of its box"
    assert set(re.findall(r"--preset (\w+)", commands)) <= set(PRESETS)
    paths = re.findall(r"`((?:finetuning|tests|benchmarks|results|docs)/[\w./-]*)`", "\n".join(texts))
    paths += re.findall(r"`(\w+\.(?:py|txt))`", README)
    assert len(paths) > 40 and not [path for path in paths if not (ROOT / path).exists()]


BLOCKS = re.findall(r"```bash\n(.*?)```", "".join((ROOT / page).read_text(encoding="utf-8") for page in tables.PAGES), re.DOTALL)
TRAININGS = [line.partition("fine_tune.py ")[2] for block in BLOCKS for line in block.replace("\\\n", "").splitlines()]


@pytest.mark.parametrize("flags", [flags for flags in TRAININGS if "docs/examples/" in flags and "_epoch " not in flags])
def test_its_commands_read_their_example(flags, monkeypatch):
    monkeypatch.chdir(ROOT)
    config, arguments = parse_config(shlex.split(flags))
    data = load_data(tasks.pick(config), config, given=arguments.given)
    assert len(data.train) > 20 and min(len(data.validation), len(data.test)) >= 2


def test_every_test_that_a_page_names_exists():
    tests = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").glob("test_*.py"))
    names = {name for page in tables.PAGES for name in re.findall(r"`(test_\w+)`", (ROOT / page).read_text(encoding="utf-8"))}
    assert len(names) > 10 and not [name for name in names if f"def {name}(" not in tests]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    headings = [re.sub(r"<!--.*?-->|\]\([^)]*\)", "", heading).strip().lower() for heading in headings]
    slugs = [re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings]
    repeats = [slugs[:number].count(slug) for number, slug in enumerate(slugs)]
    return {f"{slug}-{repeat}" if repeat else slug for slug, repeat in zip(slugs, repeats, strict=True)}


def test_anchors_are_those_of_github():
    page = "# A `b_c` & [d](e.md#f), 95 %\n## Same\n```bash\n# a comment\n```\n## Same\n"
    assert anchors(page) == {"a-b_c--d-95-", "same", "same-1"}


@pytest.mark.parametrize("page", LINKED_PAGES)
def test_its_links_lead_to_files_and_headings(page):
    folder, text = (ROOT / page).parent, (ROOT / page).read_text(encoding="utf-8")
    for link in ("".join(groups) for groups in LINK.findall(CODE.sub("", text))):
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:|\.\./\.\./actions/", link):  # to another site, or to a page that only GitHub has
            continue
        target = folder / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if line := re.fullmatch(r"L(\d+)(?:-L(\d+))?", anchor):
            assert max(int(number) for number in line.groups() if number) <= target.read_bytes().count(b"\n") + 1, f"{page}: {link}"
        elif anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page}: {link}"


def test_experiments_are_compared_row_by_row_and_seed_by_seed():
    a = [dict(n=100, wrong="1 7"), dict(n=100, wrong="")]
    b = [dict(n=100, wrong="7 20 30 40 50 60 70 80"), dict(n=100, wrong="20 30")]
    statistics = quality.statistics_of([*a, *b])
    result = metrics.difference(ACCURACY, statistics[:2], statistics[2:])
    assert result["difference"] == pytest.approx((6 + 2) / 200)
    assert result["p"] > 0.05, "two seeds that differ by five points say little"


def test_records_keep_the_statistics_of_their_rows():
    statistics = {"rows": np.ones(3), "loss": np.array([0.25, 1e-6, 12.5]), "actual": np.array([[1, 0], [0, 2], [3, 1]])}
    statistics["true_positives"] = np.eye(77)[[5, 12, 76]] * [[1], [0], [2]]  # many classes, mostly zeros
    (read,) = quality.statistics_of([dict(n=3, statistics=quality.as_text(statistics))])
    assert read.keys() == statistics.keys()
    for name, values in statistics.items():
        np.testing.assert_array_equal(read[name], values)


def test_records_of_two_forms_are_compared_only_on_a_whole_file():
    older, newer = quality.statistics_of([dict(n=2, wrong="1"), dict(n=2, statistics={"correct": "0 1"})])
    assert older["correct"].tolist() == [1, 0] and newer["correct"].tolist() == [0, 1]
    with pytest.raises(ValueError, match="measure both anew"):
        quality.statistics_of([dict(n=2, wrong="7"), dict(n=2, statistics={"correct": "0 1"})])


def test_the_page_about_adding_a_task_shows_the_code_of_regression():
    page = (ROOT / "docs/adding-a-task.md").read_text(encoding="utf-8").split("## Register the task")[0]
    shown = [line.strip() for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) for line in block.splitlines()]
    code = {line.strip() for line in (ROOT / "finetuning/tasks/regression.py").read_text(encoding="utf-8").splitlines()}
    assert len(shown) > 30 and {*shown} - code <= {"", "..."}
