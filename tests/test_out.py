"""Input and output of predict.py: the columns of a file come back exactly, and each line gets one answer."""

import codecs
import csv
import datetime
import io
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, Features, Json, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from finetuning import tasks
from finetuning.disk import remove_reserved
from finetuning.ending import exit_cleanly, shows_unicode
from finetuning.errors import UserError
from finetuning.results import report
from finetuning.task import Converses
from finetuning.training import progress
from finetuning.use import predicting

AWKWARD = [
    "",
    " a ",
    "a,b",
    'say "no"',
    '"',
    "a\tb",
    "a\nb",
    "a\r\nb",
    "a\rb",
    "a\u2028b\x85",
    "# a",
    "\\N",
    "'",
    "\ufeffa",
    "😀 é",
    "\ufffd",
]
NUMBERS = ["0111", "1.10", "TRUE", "false", "None", "NA", "nan", "null", "1234567890123456789", "1e5", "-0", "2024-01-31"]
LISTS = Features({"words": List(Value("string")), "objects": Json(), "when": Value("timestamp[ns]"), "score": Value("float64")})


def written(rows: Dataset, ending: str, folder: Path) -> Path:
    file = Path(folder) / f"out{ending}"
    predicting.check_out(file)
    try:
        predicting.write_file(rows, file)
    finally:
        remove_reserved()  # as scripts do at their end
    return file


def read_with_csv(file: Path, **options) -> list[dict]:
    with file.open(encoding="utf-8", newline="") as lines:
        return [{name: value or None for name, value in row.items()} for row in csv.DictReader(lines, **options)]


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_every_text_is_written_as_it_is(ending, tmp_path):
    rows = Dataset.from_dict({"id": [*AWKWARD, *NUMBERS], "other": [*NUMBERS, *AWKWARD]})
    options = dict(delimiter="\t") if ending == ".tsv" else {}
    expected = [{name: value or None for name, value in row.items()} for row in rows]
    assert read_with_csv(written(rows, ending, tmp_path), **options) == expected
    frame = pd.read_csv(tmp_path / f"out{ending}", dtype=str, keep_default_na=False, sep=options.get("delimiter", ","))
    assert [{name: value or None for name, value in row.items()} for row in frame.to_dict("records")] == expected


def test_a_tsv_has_quotes_only_if_it_needs_them(tmp_path):
    plain = written(Dataset.from_dict({"a": ['say "no"', 'a, "b"'], "b": ["x", None]}), ".tsv", tmp_path).read_text("utf-8")
    assert plain == 'a\tb\nsay "no"\tx\na, "b"\t\n'
    for value in ('"no" she said', "a\tb", "a\nb", "a\rb"):
        (tmp_path / "out.tsv").unlink()
        rows = Dataset.from_dict({"a": [value], "b": ["x"]})
        assert read_with_csv(written(rows, ".tsv", tmp_path), delimiter="\t") == [{"a": value, "b": "x"}]


def test_numbers_dates_lists_and_objects_are_written_exactly(tmp_path):
    time = datetime.datetime(2024, 1, 31, 12, 30, 0, 1)
    values = dict(
        words=[["a", "b"], []], objects=[{"x": [1, None, "é"]}, [0.1]], when=[time, None], score=[0.1 + 0.2, float("nan")]
    )
    rows = Dataset.from_dict(values, features=LISTS)
    lines = [json.loads(line) for line in written(rows, ".jsonl", tmp_path).read_text("utf-8").split("\n")[:-1]]
    assert lines == json.loads(written(rows, ".json", tmp_path).read_text("utf-8")) == [
        {"words": ["a", "b"], "objects": {"x": [1, None, "é"]}, "when": "2024-01-31T12:30:00.000001", "score": 0.30000000000000004},
        {"words": [], "objects": [0.1], "when": None, "score": None},
    ]  # fmt: skip
    assert read_with_csv(written(rows, ".csv", tmp_path)) == [
        {"words": "a; b", "objects": '{"x": [1, null, "é"]}', "when": "2024-01-31T12:30:00.000001", "score": "0.30000000000000004"},
        {"words": None, "objects": "0.1", "when": None, "score": None},
    ]


def test_an_integer_of_any_size_is_written_as_it_is(tmp_path):
    file, numbers = tmp_path / "in.jsonl", [10**400, 1]
    file.write_text("".join(f'{{"text": "a", "n": {number}}}\n' for number in numbers))
    rows, _ = predicting.read_file(file, None, str(tmp_path / "cache"))
    lines = written(rows, ".jsonl", tmp_path).read_text("utf-8").splitlines()
    assert [json.loads(line)["n"] for line in lines] == numbers


def write_with_csv(frame: pd.DataFrame, file: Path) -> None:
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([frame.columns, *frame.to_numpy().tolist()])


WRITERS = {  # name -> ending of the file, and the function that writes it
    "csv": (".csv", write_with_csv),
    "pandas": (".csv", lambda frame, file: frame.to_csv(file, index=False)),
    "pandas-tabs": (".tsv", lambda frame, file: frame.to_csv(file, index=False, sep="\t")),
    "json": (".json", lambda frame, file: file.write_text(json.dumps(frame.to_dict("records")), "utf-8")),
    "pandas-lines": (".jsonl", lambda frame, file: frame.to_json(file, orient="records", lines=True, force_ascii=False)),
}
TEXTS = st.one_of(st.sampled_from(AWKWARD), st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=8))


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5), st.sampled_from([*WRITERS]))
def test_a_table_comes_back_through_the_readers_and_the_writers(values, writer):
    """The texts have no \\r, because pandas writes a lone one without quotes."""
    frame = pd.DataFrame([[text.replace("\r", "\n") for text in row] for row in values], columns=["text", "note"])
    ending, write = WRITERS[writer]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"in{ending}"
        write(frame, file)
        rows, _ = predicting.read_file(file, None, Path(folder))
        out = written(rows, ending, folder)
        if ending in (".csv", ".tsv"):
            answers = read_with_csv(out, delimiter="," if ending == ".csv" else "\t")
        else:
            text = out.read_text("utf-8")
            answers = json.loads(text) if ending == ".json" else [json.loads(line) for line in text.split("\n")[:-1]]
    tables = [[{name: value or "" for name, value in row.items()} for row in table] for table in (rows.to_list(), answers)]
    assert tables[0] == tables[1] == frame.to_dict("records")


@pytest.mark.parametrize("ending", [".csv", ".json"])
def test_bytes_are_refused_and_no_file_is_left_behind(ending, tmp_path):
    with pytest.raises(UserError, match="bytes, which only a .parquet file can store: use this ending"):
        written(Dataset.from_dict({"text": ["a"], "image": [b"\xff"]}), ending, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_answers_never_replace_a_column_of_the_file():
    task = predicting.Task()
    task.answer_features = Features({"prediction": Value("string"), "probability": Value("float64")})
    predicting.check_names(task, ["text", "Prediction", "label"])
    with pytest.raises(UserError, match="prediction, probability: .* rename the columns"):
        predicting.check_names(task, ["text", "prediction", "probability"])


@pytest.mark.parametrize("task", tasks.TASKS, ids=lambda task: task.problem_type or task.name)
def test_the_first_rows_may_have_no_answer(task, monkeypatch):
    """The type of a column does not depend on rows without any label or entity."""
    monkeypatch.setattr(predicting, "ROWS_IN_MEMORY", 2)
    example = dict(string="é", float64=0.5, int64=1)

    def filled(feature):
        if isinstance(feature, dict):
            return {name: filled(part) for name, part in feature.items()}
        return [filled(feature.feature)] if isinstance(feature, List) else example[feature.dtype]

    answer = filled(task.answer_features)
    empty = {name: [] if isinstance(feature, List) else answer[name] for name, feature in task.answer_features.items()}
    answers = predicting.Answers.__new__(predicting.Answers)
    answers.run = SimpleNamespace(task=task)
    answers.answer_batch = lambda inputs: {name: [(answer if text else empty)[name] for text in inputs["text"]] for name in answer}
    rows = answers.add_to(Dataset.from_dict({"note": ["1"] * 4, "text": ["", "", "a", "a"]}), {"text": "text"})
    assert rows.to_list() == [{"note": "1"} | row for row in 2 * [{"text": ""} | empty] + 2 * [{"text": "a"} | answer]]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"a\r\nb\n\nc", ["a", "b", "", "c"]),
        ("a\u2028b\x0bc\x0cd\x85e\x1cf\rg\n".encode(), ["a\u2028b\x0bc\x0cd\x85e\x1cf\rg"]),
        (codecs.BOM_UTF8 + "é\n".encode(), ["é"]),
        ("é\nb".encode("utf-16"), ["é", "b"]),
        ("café noir\nnaïve résumé déjà vu\n".encode("latin-1"), ["café noir", "naïve résumé déjà vu"]),
        (b"", []),
    ],
)
def test_lines_of_the_standard_input_are_read_in_any_encoding(content, lines, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))
    texts, remarks = predicting.read_stdin(None)
    assert texts == lines and ["café" in remark for remark in remarks] == [True] * ("café noir" in lines)


def test_scripts_do_without_streams_that_are_closed(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)

    @exit_cleanly
    def main():
        progress.Bar([1, 1], "two steps", show=True).write("a line")
        with pytest.raises(UserError, match="no texts"):
            predicting.read_texts([], None)

    main()
    assert not sys.stdout.isatty()


def test_a_conversation_goes_on_after_bytes_that_are_not_utf8(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))

    class Echo(Converses):
        def stream(self, predictor, messages):
            yield f"you said {messages[-1]['content']}"

    predicting.chat(SimpleNamespace(run=SimpleNamespace(task=Echo()), predictor=None))
    assert "you said caf\ufffd\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "encoding", "words"),
    [
        ("a".encode("utf-16-le"), None, "NUL characters .the first in line 1"),
        ("é".encode("latin-1"), "utf-8", "set --encoding"),
        ("é".encode("utf-16")[:-1], None, "set --encoding"),
    ],
)
def test_a_standard_input_that_is_no_text_is_refused(content, encoding, words, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    with pytest.raises(UserError, match=words):
        predicting.read_stdin(encoding)


def test_characters_that_the_terminal_lacks_are_escaped(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="cp1252", write_through=True))

    @exit_cleanly
    def main():
        print("é 😀 \udce9")
        print(json.dumps("é 😀", ensure_ascii=not shows_unicode(sys.stdout)))
        raise UserError("😀")

    with pytest.raises(SystemExit):
        main()
    text, answer = sys.stdout.buffer.getvalue().decode("cp1252").splitlines()
    assert text == r"é \U0001f600 \udce9" and json.loads(answer) == "é 😀"
    assert sys.stderr.buffer.getvalue() == rb"error: \U0001f600" + b"\n"


def test_a_carriage_return_does_not_end_a_row_of_a_csv_file(tmp_path):
    frame = pd.DataFrame({"row": [0, 1], "text": ["a\rb", 'c\r\n"d"'], "chrf": [0.5, 1.0]})
    report.write_csv(tmp_path / "errors.csv", np.arange(2), lambda positions: frame.iloc[positions])
    with (tmp_path / "errors.csv").open(newline="") as file:
        assert [*csv.reader(file)] == [["row", "text", "chrf"], ["0", "a\rb", "0.5"], ["1", 'c\r\n"d"', "1.0"]]
