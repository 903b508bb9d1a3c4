"""Files, texts and names that were made to do harm: nothing of them runs, and each ends with one clear line."""

import gzip
import io
import json
import os
import pty
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import forked
import huggingface_hub
import pyarrow.parquet
import pytest
from conftest import make_model, make_rows
from datasets import Dataset
from transformers import AutoTokenizer

from config import Config
from finetuning import tasks
from finetuning.data import files, hub, json_rows, tokens
from finetuning.data.formats import READERS, read_lines
from finetuning.data.reading import read
from finetuning.data.words import find_words
from finetuning.errors import CONTROLS, UserError

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, ru_maxrss has another unit")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_models_folder_is_never_run(file, call, tiny_flags, tmp_path, monkeypatch):
    """Without trust_remote_code=False, transformers asks, and a "y" on the standard input runs the code."""
    folder, canary = make_model(tmp_path / "model", "llama"), tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w').close()\nfrom transformers import PretrainedConfig, PreTrainedTokenizerFast\n"
    code += "class Config(PretrainedConfig):\n    model_type = 'hostile'\nclass Tokenizer(PreTrainedTokenizerFast):\n    pass\n"
    (folder / "hostile.py").write_text(code)
    auto_map = {"AutoConfig": "hostile.Config", "AutoTokenizer": [None, "hostile.Tokenizer"]}
    content = json.loads((folder / file).read_text())
    content |= {"auto_map": auto_map, "model_type": "hostile", "tokenizer_class": "Tokenizer"}
    (folder / file).write_text(json.dumps(content))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
    result = call("fine_tune.py", *tiny_flags, "--model_name", folder)
    assert not canary.exists()
    assert result.code == 2 and "code of its own" in result.err and len(result.err.splitlines()) == 1, result.err


LISTS = "[" * 100_000 + "]" * 100_000
OBJECTS = '{"a":' * 100_000 + "1" + "}" * 100_000
CARD = "---\nconfigs:\n- config_name: default\n  data_files: rows.jsonl\n---\n"


@pytest.mark.parametrize("value", [LISTS, OBJECTS], ids=["lists", "objects"])
@pytest.mark.parametrize(
    ("name", "task"),
    [
        *((name, "text-classification") for name in ("rows.jsonl", "one.jsonl", "rows.json", "rows.csv", "copy")),
        ("rows.csv", "token-classification"),  # only cells are read by the task; the others are refused before
    ],
)
def test_deeply_nested_values_are_one_line(name, task, value, call, model_dir, tmp_path):
    row = f'{{"text": "a film", "label": {value}}}'
    if name == "copy":  # of a data set on the Hub, which `datasets` reads
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(CARD)
        (tmp_path / name / "rows.jsonl").write_text("\n".join([row] * 2))
    else:
        quoted = '"' + value.replace('"', '""') + '"'
        content = {"rows.jsonl": f"{row}\n{row}\n", "one.jsonl": row, "rows.json": f"[{row}]"}
        (tmp_path / name).write_text(content.get(name, f"text,label\na film,{quoted}\nanother,{quoted}\n"))
    result = call("fine_tune.py", "--model_name", model_dir, "--max_length", 64, "--dataset_name", name, "--task", task)
    assert result.code == 2 and len(result.err.splitlines()) == 1 and len(result.err) < 1000, result.err[-2000:]
    assert name == "rows.csv" or name in result.err and "nested" in result.err


def test_brackets_in_texts_and_many_rows_are_no_nesting(tmp_path):
    """The depth goes on over lines, and a list of 200 rows is two deep."""
    text = json.dumps('a "quoted" \\ text ' + "[{" * 200)
    (tmp_path / "rows.json").write_text("[" + ",\n".join([f'{{"text": {text}, "label": [["x"]]}}'] * 200) + "]")
    json_rows.check_file(tmp_path / "rows.json")
    assert len(next(json_rows.read_json([tmp_path / "rows.json"], None, [])["train"])) == 200
    (tmp_path / "lines.json").write_text("[\n" * 101 + '"a [{"\n' + "]\n" * 101)
    with pytest.raises(UserError, match="line 101: too many lists"):
        json_rows.check_file(tmp_path / "lines.json")


@pytest.mark.parametrize("kind", ["copy", "parquet", "saved"])
def test_a_byte_that_is_not_utf8_is_one_line(kind, call, tiny_flags, tmp_path):
    """Arrow's readers of JSON and parquet take any bytes as a text. A plain jsonl file is read in a guessed encoding, with a note."""
    lines = make_rows().to_json(orient="records", lines=True).encode().replace(b"a fine", b"caf\xe9", 1)
    if kind == "copy":
        (tmp_path / "rows").mkdir()
        (tmp_path / "rows" / "README.md").write_text(CARD)
        (tmp_path / "rows" / "rows.jsonl").write_bytes(lines)
    else:
        columns = make_rows().to_dict("list")
        texts = pyarrow.array([text.encode() for text in columns["review"][1:]] + [b"caf\xe9"])
        texts = pyarrow.Array.from_buffers(pyarrow.string(), len(texts), texts.buffers())
        table = pyarrow.table({"review": texts, "sentiment": columns["sentiment"]})
        if kind == "saved":
            Dataset(table).save_to_disk(tmp_path / "rows")
        else:
            pyarrow.parquet.write_table(table, tmp_path / "rows")
            (tmp_path / "rows").rename(tmp_path / "rows.parquet")
    name = "rows.parquet" if kind == "parquet" else "rows"
    result = call("fine_tune.py", *tiny_flags, "--dataset_name", name)
    assert result.code == 2 and len(result.err.splitlines()) == 1, result.err[-2000:]
    assert name in result.err and "not UTF-8" in result.err


@pytest.mark.parametrize("name", ["n" * 300, "n" * 300 + ".csv", "./" + "n" * 300], ids=["hub", "csv", "path"])
def test_a_name_that_no_file_can_have_is_one_line(name, call, tiny_flags, tmp_path):
    for setting in ("dataset_name", "model_name", "run_name", "output_dir"):
        result = call("fine_tune.py", *tiny_flags, f"--{setting}", name)
        assert result.code == 2 and len(result.err.splitlines()) == 1, result.err[-2000:]
        assert f"{setting}=" in result.err, result.err
    (tmp_path / "rows.csv").write_text("text\na film\n")
    for flags in (["--file", name], ["--file", "rows.csv", "--out", f"{name}.csv"]):
        result = call("predict.py", *flags)
        assert result.code == 2 and len(result.err.splitlines()) == 1, result.err[-2000:]


@LINUX
def test_long_texts_give_the_same_tokens_with_little_memory(model_dir, tmp_path):
    """Without `MAX_CHARACTERS`, these 5 million characters take 500 MiB of memory."""
    program = tmp_path / "program.py"
    program.write_text(f"""
import resource
from transformers import AutoTokenizer
from config import Config
from finetuning.data.tokens import tokenize_texts

tokenizer = AutoTokenizer.from_pretrained({str(model_dir)!r})
texts = ["a fine film"] * 3 + ["one film, and " * 18_000 + f"no  end {{i % 60}}" for i in range(20)]
tokenize_texts(["a film"], tokenizer, Config())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ids, lengths = tokenize_texts(texts, tokenizer, Config(max_length=64))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
for text, row, length in zip(texts, ids, lengths, strict=True):
    full = tokenizer(text, padding=False, truncation=False)["input_ids"]
    assert length == len(full) and list(row) == (full if len(full) <= 64 else full[:16] + full[-48:])
""")
    ((code, printed),) = forked.run(tmp_path, program)
    assert code == 0, printed
    assert int(printed) < 150, f"{printed} MiB"


def test_texts_and_names_cannot_control_the_terminal(call, tiny_flags, tmp_path, monkeypatch):
    hostile = "\x1b[31m\x9b2J\u202e"
    rows = make_rows()
    rows["review"] = hostile + " " + rows["review"]
    rows["sentiment"] = rows["sentiment"].map({"good": f"good{hostile}`<img src=x>`", "bad": "bad\nerror: forged"})
    rows.rename(columns={"review": f"text{hostile}"}).to_csv(tmp_path / f"rows<b>{hostile}.csv", index=False)
    name = f"run<b>{hostile}"
    flags = ["--dataset_name", f"rows<b>{hostile}.csv", "--text_column", f"text{hostile}", "--run_name", name]
    wrong = call("fine_tune.py", *tiny_flags, *flags, "--label_column", hostile)
    trained = call("fine_tune.py", *tiny_flags, *flags, "--num_train_epochs", 1)
    assert wrong.code == 2 and trained.code == 0, trained.err
    evaluated = call("evaluate.py")
    again = call("predict.py", "--explain", hostile + "a film")
    for result in (wrong, trained, evaluated):
        assert not CONTROLS.search(result.out + result.err) and "\\x1b" in result.out + result.err
        assert "\nerror: forged" not in result.out
    card = (tmp_path / "outputs" / name / "adapter" / "README.md").read_text()
    text = card.partition("\n---\n")[2].partition("```python")[0]
    assert not CONTROLS.search(card) and "<b>" not in text and "'<img src=x>'`" in text
    assert "\x1b" in again.out, "a file gets the labels as they are"
    terminal, standard_output = pty.openpty()
    with monkeypatch.context() as patch, open(standard_output, "w", encoding="utf-8") as stdout:
        patch.setattr(sys, "stdout", stdout)
        result = call("predict.py", "--explain", hostile + "a film")
    printed = os.read(terminal, 10_000).decode().replace("\r", "")
    os.close(terminal)
    assert result.code == 0 and "\\x1b" in printed and not CONTROLS.search(printed + result.err)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, names of files are always Unicode")
def test_arguments_names_and_input_that_are_not_utf8_are_read(call, tiny_flags, tmp_path, monkeypatch):
    latin = os.fsdecode(b"caf\xe9")  # as Python reads such an argument
    make_rows().to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "rows.csv").rename(f"{latin}.csv")
    flags = ["--dataset_name", f"{latin}.csv", "--num_train_epochs", 1]
    trained = call("fine_tune.py", *tiny_flags, *flags)
    assert trained.code == 0, trained.err
    written = call("predict.py", "--file", f"{latin}.csv", "--out", f"{latin}-labelled.csv")
    assert written.code == 0 and len((tmp_path / f"{latin}-labelled.csv").read_text().splitlines()) == 81, written.err
    argument = call("predict.py", latin)
    assert argument.code == 0 and "caf\ufffd" in argument.out, argument.err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a caf\xe9\n"), encoding="utf-8"))
    piped = call("predict.py")
    assert piped.code == 0 and "is not UTF-8" in piped.err, piped.err
    for setting in ("run_name", "output_dir"):
        refused = call("fine_tune.py", *tiny_flags, f"--{setting}", latin)
        assert refused.code == 2 and f"error: {setting}=caf\ufffd: it is not UTF-8" in refused.err, refused.err
    missing = call("predict.py", "--file", f"{latin}-2.csv")
    assert missing.code == 2 and len(missing.err.splitlines()) == 1, missing.err


@pytest.mark.parametrize("status", [200, 404, 429, 503])
def test_a_hub_that_is_out_of_order_is_named_and_not_used(status, monkeypatch, capsys):
    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    try:
        assert hub._ask_hub() is (status in (200, 404))
    finally:
        server.shutdown()
    assert (f"answers with error {status}" in capsys.readouterr().err) is (status in (429, 503))


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_file_without_end_is_not_read(kind, call, tiny_flags, tmp_path):
    if kind == "pipe":
        os.mkfifo(tmp_path / "rows.csv")
    else:
        (tmp_path / "rows.csv").symlink_to("/dev/zero")
    result = call("fine_tune.py", *tiny_flags, "--dataset_name", "rows.csv")
    assert result.code == 2 and "dataset_name=rows.csv" in result.err and "neither a file nor a folder" in result.err, result.err


def test_a_message_names_some_columns_of_very_many(call, tiny_flags, tmp_path):
    names = [f"column {i}" for i in range(10_000)]
    (tmp_path / "rows.csv").write_text(f"{','.join(names)}\n{',' * 9_999}\n")
    result = call("fine_tune.py", *tiny_flags, "--dataset_name", "rows.csv", "--text_column", "text")
    assert result.code == 2 and "column 19 and 9,980 more" in result.err and len(result.err) < 1000, result.err[:2000]


@LINUX
def test_a_batch_of_long_pairs_is_tokenized_with_little_memory(tmp_path):
    """Tokenized at once, these 4 million characters take 270 MiB of memory."""
    model = make_model(tmp_path / "model", "bert")
    program = tmp_path / "program.py"
    program.write_text(f"""
import resource
from transformers import AutoTokenizer
from config import Config
from finetuning import tasks

config = Config(text_pair_column="text_pair", max_length=4096)
task, tokenizer = tasks.pick(config), AutoTokenizer.from_pretrained({str(model)!r})
task.tokenize(dict(text=["film"], text_pair=["film"]), tokenizer, config)
texts = ["film " * 1000] * 400
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
examples = task.tokenize(dict(text=texts, text_pair=texts), tokenizer, config)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
assert [len(ids) for ids in examples["input_ids"]] == [2003] * 400 == examples["length"]
""")
    ((code, printed),) = forked.run(tmp_path, program)
    assert code == 0, printed
    assert int(printed) < 150, f"{printed} MiB"


@pytest.mark.parametrize("kind", ["pairs", "entities", "translation"])
def test_the_tokens_do_not_depend_on_how_many_texts_the_tokenizer_gets_at_once(kind, tmp_path, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(make_model(tmp_path / "model", "marian" if kind == "translation" else "bert"))
    texts = ["a fine film with a warm heart " * (i % 7) + str(i % 60) for i in range(50)]
    words = [[*zip(*find_words(text), strict=True)] for text in texts]
    starts, ends = ([[word[side] for word in row] for row in words] for side in (0, 1))
    columns, settings = {
        "pairs": (dict(text=texts, text_pair=texts[::-1]), dict(text_pair_column="text_pair")),
        "entities": (dict(text=texts, starts=starts, ends=ends), dict(task="token-classification", context="neighbours")),
        "translation": (
            dict(source=texts, target=texts[::-1]),
            dict(task="translation", source_column="source", target_column="target"),
        ),
    }[kind]
    config = Config(max_length=32, **settings)
    at_once = tasks.pick(config).tokenize(columns, tokenizer, config)
    monkeypatch.setattr(tokens, "MAX_CHARACTERS", 300)
    assert tasks.pick(config).tokenize(columns, tokenizer, config) == at_once


@pytest.mark.parametrize(
    "name", ["lines.csv", "line.csv", "rows.tsv", "rows.jsonl.gz", "rows.txt", "rows.json.gz", "rows.parquet.gz"]
)
def test_a_text_without_end_is_one_line(name, tmp_path, monkeypatch):
    """Such as a compressed file with a few bytes that become gigabytes."""
    start = {".csv": 'text,label\n"', ".tsv": "text\tlabel\n", ".gz": '[{"text": "' if "json.gz" in name else '{"text": "'}
    content = start.get(Path(name).suffix, "") + ("word\n" if name == "lines.csv" else "word ") * 3_000_000
    opened = gzip.open if name.endswith(".gz") else open
    with opened(tmp_path / name, "wt", encoding="utf-8") as file:
        file.write(content)
    monkeypatch.setattr(files, "MAX_UNPACKED", 10**7)
    monkeypatch.setattr(json_rows, "MAX_UNPACKED", 10**7)
    with pytest.raises(UserError, match="more than 10,000,000 char|field larger than field limit|more than 0.0093.* GiB") as error:
        read(tmp_path / name, READERS | {".txt": read_lines}, "", cache=str(tmp_path / "cache"))
    assert len(str(error.value)) < 500
