"""Words, tags and spans: all formats give the same rows, and a row that cannot be read is named."""

import json
import re
import shutil

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Json, List, Value
from entity_files import make_sentences

from config import Config
from finetuning.data import spans
from finetuning.data.splits import Data, load_data
from finetuning.data.words import find_words
from finetuning.errors import UserError
from finetuning.tasks.classification import SingleLabel
from finetuning.tasks.entities import Entities

FORMATS = ["iob2.conll", "iob1.txt", "iobes.bio", "bilou.iob", "windows.conll", "numbers.parquet", "words.jsonl", "doccano.jsonl"]
FORMATS += ["prodigy.jsonl", "relations.jsonl", "studio.json"]


def load(path, **settings) -> Data:
    return load_data(Entities(), Config(task="token-classification", dataset_name=str(path), **settings))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_texts_words_and_tags(name, entity_files):
    loaded = load(entity_files / name)
    words, tags = make_sentences()
    assert loaded.label_names == ["O", "B-LOOK", "I-LOOK", "B-NUM", "I-NUM"] and not loaded.remarks
    row_numbers = []
    for split in (loaded.train, loaded.validation, loaded.test):
        rows = split.columns()
        for i, row in enumerate(split.rows):
            offsets = zip(rows["starts"][i], rows["ends"][i], strict=True)
            assert [rows["text"][i][start:end] for start, end in offsets] == words[row] and rows["text"][i] == " ".join(words[row])
            assert [loaded.label_names[tag] for tag in rows["tags"][i]] == tags[row]
            row_numbers.append(row)
    assert sorted(row_numbers) == list(range(120))
    assert len(np.unique(loaded.test.labels)) == len(np.unique(loaded.train.labels)) > 1, "stratified by the rarest type"


def test_the_files_of_conll_2003_are_read_as_its_splits(entity_files):
    loaded = load(entity_files / "eng")
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (80, 20, 20)
    assert (loaded.test_split, loaded.validation_split) == ("official test", "official validation")


def test_a_readme_beside_parquet_files_is_not_read(entity_files, tmp_path):
    shutil.copy(entity_files / "numbers.parquet", tmp_path / "train.parquet")
    (tmp_path / "README.txt").write_text("What the columns hold.\n")
    assert len(load(tmp_path).train) == 84


def test_an_inside_tag_without_a_begin_tag_begins_an_entity():
    assert spans.to_iob2(["I-A", "I-A", "O", "I-B", "I-A", "B-A"]) == ["B-A", "I-A", "O", "B-B", "B-A", "B-A"]
    assert spans.to_iob2(["S-A", "I-A", "E-A", "E-A"]) == ["B-A", "B-A", "I-A", "B-A"], "the word after an end begins an entity"


def read(rows: list[dict], **settings):
    """Return the rows as the task reads them, and the (word, tag) pairs of each row."""
    feature_types = {str: Value("string"), list: Json(), dict: Json()}
    features = Features({name: feature_types[type(value)] for name, value in rows[0].items()})
    raw = {"train": Dataset.from_list(rows, features=features)}
    config, task = Config(task="token-classification", **settings), Entities()
    result = task.read(raw, task.columns([*features], config), config)
    columns = result.columns["train"][:]
    words = [
        [(text[start:end], result.label_names[tag]) for start, end, tag in zip(*lists, strict=True)]
        for text, *lists in zip(*(columns[name] for name in ("text", "starts", "ends", "tags")), strict=True)
    ]
    return result, words


def test_spans_inside_words_divide_them_and_overlapping_or_empty_spans_are_left_out_with_notes(call, model_dir, tmp_path):
    text = "Jean-Claude Juncker visited Luxembourg City on 6Nov18 ."
    usual = [[12, 19, "PER"], [28, 43, "LOC"], [48, 51, "DATE"]]
    rows = [{"text": f"{text} {i}", "label": usual} for i in range(60)]
    rows[3]["label"] = [[0, 4, "PER"], [12, 19, "PER"], [27, 44, "LOC"], [28, 38, "LOC"], [48, 53, "DATE"], [27, 28, "LOC"]]
    _, words = read(rows)
    assert words[3][:8] == [
        *[("Jean", "B-PER"), ("-Claude", "O"), ("Juncker", "B-PER"), ("visited", "O"), ("Luxembourg", "B-LOC"), ("City", "I-LOC")],
        *[("on", "O"), ("6", "O")],
    ]
    assert words[3][8] == ("Nov18", "B-DATE") and words[0][6:9] == [("6", "O"), ("Nov", "B-DATE"), ("18", "O")]
    (tmp_path / "spans.jsonl").write_text("\n".join(map(json.dumps, rows)))
    loaded = load(tmp_path / "spans.jsonl")
    divided, overlapping, empty = sorted(loaded.remarks, key=len, reverse=True)
    assert divided.startswith(
        "61 spans begin or end inside a word; the words were divided there (row 0, 1, 2, 3, 4, ... of train; first: DATE"
    )
    assert overlapping == "1 spans overlap a longer one; they were left out (row 3 of train; first: LOC 'Luxembourg')"
    assert empty == "1 spans hold no word; they were left out (row 3 of train; first: LOC ' ')"
    flags = ["--task", "token-classification", "--dataset_name", tmp_path / "spans.jsonl", "--model_name", model_dir]
    trained = call("fine_tune.py", *flags, "--max_length", 32)
    assert trained.code == 0 and all(remark in trained.out for remark in loaded.remarks), trained.err


# --- annotation tools ----------------------------------------------------------------------------------------------------


def test_only_rows_that_were_accepted_in_prodigy_are_used():
    good, bad = [{"start": 0, "end": 4, "label": "LOC"}], [{"start": 5, "end": 7, "label": "WRONG"}]
    answers = ["accept", "reject", "accept", "ignore", "reject"]
    rows = [dict(text=f"Orva is {i}", spans=good if answer == "accept" else bad, answer=answer) for i, answer in enumerate(answers)]
    result, words = read(rows)
    assert result.left_out["train"].tolist() == [answer != "accept" for answer in answers]
    assert result.label_names == ["O", "B-LOC", "I-LOC"] and words[2][0] == ("Orva", "B-LOC")
    assert result.remarks == ["column answer, as Prodigy writes it: only rows with accept are used; left out: 2 reject, 1 ignore"]
    result, words = read([row | {"answer": "yes"} for row in rows])
    assert not result.left_out["train"].any() and not result.remarks, "with other values the column is not Prodigy's"
    with pytest.raises(UserError, match="column answer: no row of split train is accepted"):
        read([row | {"answer": "reject"} for row in rows])


def test_labels_of_rows_that_were_rejected_in_prodigy_are_not_used():
    answers = ["accept", "reject", "accept", "ignore", "accept"]
    raw = Dataset.from_dict({"text": ["a film"] * 5, "label": ["good", "odd", "bad", "good", "bad"], "answer": answers})
    numbered = raw.class_encode_column("answer")
    assert SingleLabel().read({"train": numbered}, {"text": "text", "label": "label"}, Config()).label_names == ["bad", "good"]
    result = SingleLabel().read({"train": raw}, {"text": "text", "label": "label"}, Config())
    assert result.label_names == ["bad", "good"] and result.labels["train"][[0, 2, 4]].tolist() == [1, 0, 0]
    assert result.left_out["train"].tolist() == [False, True, False, True, False] and "1 reject, 1 ignore" in result.remarks[0]


def studio(text: str, *annotations: dict) -> dict:
    """Return a row as Label Studio writes it."""
    return {"data": {"text": text}, "annotations": [*annotations]}


def region(start: int, end: int, *labels: str, **more) -> dict:
    return {"id": "r", "type": "labels", "value": {"start": start, "end": end, "labels": [*labels]} | more}


def test_a_task_of_label_studio_is_read_from_one_annotation_that_was_not_cancelled():
    good, other, cancelled = (
        {"result": [region(0, 4, "LOC")]},
        {"result": [region(0, 4, "ORG")]},
        {"was_cancelled": True, "result": []},
    )
    rows = [
        studio("Orva is 0", cancelled, good),
        studio("Orva is 1", other, good | {"ground_truth": True}),
        studio("Orva is 2", good, other),
        studio("Orva is 3", cancelled),
        studio("Orva is 4"),
        studio("Zork is 5", {"result": []}),
    ]
    result, words = read(rows)
    assert [row[0][1] if row else None for row in words] == ["B-LOC", "B-LOC", "B-LOC", None, None, "O"]
    assert result.left_out["train"].tolist() == [False, False, False, True, True, False]
    assert result.remarks == [
        "1 rows have several annotations; the first one was read (row 2 of train; first: 2 annotations)",
        "2 rows have no annotation, or only cancelled ones; they were left out (row 3, 4 of train)",
    ]


def test_parts_of_an_annotation_that_are_not_spans_are_ignored_and_counted():
    others = [{"type": "relation", "from_id": "a", "to_id": "b"}, {"type": "choices", "value": {"choices": ["News"]}}, region(0, 2)]
    result, words = read([studio(f"Orva is {i}", {"result": [*others, region(0, 4, "LOC")]}) for i in range(3)])
    assert [row[:2] for row in words] == [[("Orva", "B-LOC"), ("is", "O")]] * 3
    kinds = [f"3 parts of annotations, of type {kind}, are no spans" for kind in ("relation", "choices", "labels")]
    assert all(remark.startswith(kind) for remark, kind in zip(result.remarks, kinds, strict=True))


EMOJI = "🎉🎉🎉🎉🎉 Orva wins"  # Orva: 6 to 10 in characters, 11 to 15 in UTF-16 units


@pytest.mark.parametrize(
    ("text", "span", "settings", "words", "note"),
    [
        (EMOJI, dict(start=11, end=15, text="Orva"), {}, "Orva", "1 spans hold the text that the tool wrote .* UTF-16 units"),
        (EMOJI, dict(start=6, end=10, text="Orva"), {}, "Orva", None),
        (EMOJI, dict(start=11, end=15), {"span_offsets": "utf-16"}, "Orva", None),
        (EMOJI, dict(start=11, end=15), {"span_offsets": "characters"}, "wins", None),
    ],
)
def test_offsets_behind_emoji_are_read_by_the_text_or_the_setting(text, span, settings, words, note):
    rows = [{"text": text, "label": [span | {"label": "LOC"}]}, {"text": "Orva 🎉", "label": [[0, 4, "LOC"]]}]
    result, tagged = read(rows, **settings)
    assert [word for word, tag in tagged[0] if tag != "O"] == [words] and tagged[1] == [("Orva", "B-LOC"), ("🎉", "O")]
    assert re.match(note, result.remarks[0]) if note else not result.remarks


@pytest.mark.parametrize(
    ("row", "settings", "words"),
    [
        (
            {"text": EMOJI, "label": [[11, 15, "LOC"]]},
            {},
            ["row 0 of split train", "'wins' if offsets count characters or 'Orva' if offsets count UTF-16", "set span_offsets"],
        ),
        ({"text": EMOJI, "label": [[16, 20, "LOC"]]}, {}, ["'' if offsets count characters or 'wins' if", "set span_offsets"]),
        ({"text": EMOJI, "label": [[86, 90, "LOC"]]}, {}, ["from 86 to 90", "15 characters: correct or remove it"]),
        ({"text": "Été: Orva", "label": [[86, 90, "LOC"]]}, {}, ["from 86 to 90", "9 characters: correct or remove it"]),
        (
            {"text": EMOJI, "label": [[16, 20, "LOC"]]},
            {"span_offsets": "characters"},
            ["15 characters", "UTF-16", "emoji", "span_offsets"],
        ),
        (
            {"text": EMOJI, "label": [dict(start=7, end=11, text="Orva", label="LOC")]},
            {},
            ["row 0", "has the text 'Orva'", "'rva '", "correct"],
        ),
        (studio("Orva is", {"result": [region(0, 4, "LOC", "ORG")]}), {}, ["row 0", "several labels, LOC, ORG"]),
        (studio("Orva is", {"was_cancelled": True, "result": []}), {}, ["no row of split train is annotated"]),
        ({"data": {"title": "a", "body": "b"}, "annotations": []}, {}, ["row 0", "no `text`, only title, body"]),
        ({"text": "Orva is", "tags": "['B-LOC', 'O']"}, {}, ["row 0", "a tag for each word"]),
        ({"text": "Orva", "tags": "B-LOC"}, {}, ["single words with their tags", ".conll", "empty line"]),
    ],
)
def test_ambiguous_and_unreadable_annotations_are_refused(row, settings, words):
    with pytest.raises(UserError) as error:
        read([row], **settings)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("Orva won today", 0, 3),  # the end is the last character
        ("Orva won today", 1, 5),  # the first character is 1
        ("Orva won today", 1, 4),
        ("Été: Orva won today", 7, 11),  # bytes of UTF-8
        ("Orvas won", 1, 3),  # right, as in languages whose words have prefixes and endings
    ],
)
def test_data_are_refused_if_most_spans_divide_words_unless_their_texts_or_the_setting_say_that_they_are_right(text, start, end):
    rows = [{"text": f"{text} {i}", "label": [dict(start=start, end=end, label="LOC")]} for i in range(20)]
    rows[0]["label"] = [[0, len(text), "LOC"]]
    with pytest.raises(UserError, match="19 of 20 spans of train begin or end inside a word: .* set span_offsets to characters"):
        read(rows)
    assert "19 spans begin or end inside a word" in read(rows, span_offsets="characters")[0].remarks[0]
    half = rows[:11] + [{"text": f"{text} {i}", "label": [[0, len(text), "LOC"]]} for i in range(10)]
    assert "10 spans begin or end inside a word" in read(half)[0].remarks[0]
    for row in rows[1:]:
        row["label"][0]["text"] = text[start:end]
    rows[0]["label"] = [dict(start=0, end=len(text), label="LOC", text=text)]
    assert "19 spans begin or end inside a word; the words were divided there, as their own texts say" in read(rows)[0].remarks[0]


def test_a_test_split_whose_spans_are_shifted_is_refused_even_if_train_is_right():
    config, task = Config(task="token-classification"), Entities()
    span_of_split = {"train": [0, 4, "LOC"], "test": [1, 5, "LOC"]}
    raw = {
        split: Dataset.from_list(
            [dict(text=f"Orva lost {i}", label=[span]) for i in range(9)], Features(text=Value("string"), label=Json())
        )
        for split, span in span_of_split.items()
    }
    with pytest.raises(UserError, match="9 of 9 spans of test begin or end inside a word"):
        task.read(raw, task.columns(["text", "label"], config), config)


def test_rows_without_a_value_and_types_that_look_alike_are_noted():
    rows = [{"text": "Orva is", "label": [[0, 4, name]]} for name in ("LOC", "LOC ", "loc")]
    result, words = read([*rows, {"text": "Orva was", "label": None}, {"text": "it was", "label": []}])
    remarks = result.remarks
    assert [row[0][1] for row in words[:3]] == ["B-LOC", "B-LOC", "B-loc"], "spaces around a type do not count"
    assert any("1 rows have no value in the label column" in remark for remark in remarks), remarks
    assert any("only in capital letters or spaces: 'LOC', 'loc'" in remark for remark in remarks), remarks


def test_a_tag_of_minus_one_is_not_read_as_the_last_tag(tmp_path):
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "B-LOC", "I-LOC"]))})
    rows = {"tokens": [["Orva", "is"], ["is", "it"]], "ner_tags": [[1, 0], [0, -1]]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="row 1 .*word 2, 'it', has no tag"):
        load(tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    "row",
    [
        {"text": "Orva it's", "label": '[{"start": 0, "end": 4, "text": "Orva", "labels": ["LOC"]}]'},
        {"text": "Orva it's", "label": "[(0, 4, 'LOC')]"},
        {"tokens": """['Orva', 'it', "'s"]""", "ner_tags": "['B-LOC', 'O', 'O']"},
        {"tokens": """['Orva' 'it' "'s"]""", "ner_tags": "['B-LOC' 'O' 'O']"},  # by NumPy
        {"tokens": ["Orva", "it", "'s"], "ner_tags": ["B-LOC", "O", "O"]},
    ],
)
def test_lists_in_table_cells_are_read_like_lists_in_json(row):
    assert read([row])[1] == [[("Orva", "B-LOC"), ("it", "O"), ("'s", "O")]]


# --- words ---------------------------------------------------------------------------------------------------------------


def test_a_text_of_zero_width_spaces_is_empty():
    assert spans.text_of("\u200b") == "" and spans.text_of(" a\u200b") == " a\u200b"


def test_rows_without_words_are_an_error_or_left_out_and_the_others_keep_their_numbers(tmp_path):
    rows = [{"text": f"a film {i}", "label": [[7, 7 + len(str(i)), "NUM"]]} for i in range(40)]
    rows[3], rows[20] = {"text": " ", "label": []}, {"text": None, "label": []}
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"2 of 40 rows of split train with an empty text \(row 3, 20\).*on_bad_rows"):
        load(tmp_path / "rows.jsonl")
    loaded = load(tmp_path / "rows.jsonl", on_bad_rows="skip")
    splits = (loaded.train, loaded.validation, loaded.test)
    assert sorted(row for split in splits for row in split.rows) == [i for i in range(40) if i not in (3, 20)]
    assert all(rows[row]["text"] == text for split in splits for row, text in zip(split.rows, split.columns()["text"], strict=True))


@pytest.mark.parametrize(
    "text", ["नरेंद्र मोदी दिल्ली में हैं।", "安倍晋三は東京で会った", "Ünal gülümsedi: “İyi!” 😀", "ما زال في القاهرة"]
)
def test_the_words_of_any_script_hold_all_characters_but_spaces_and_keep_their_marks(text):
    starts, ends = find_words(text)
    words = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    assert "".join(words) == "".join(text.split())
    assert words[0] in ("नरेंद्र", "安", "Ünal", "ما")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "The U.S.-based AT&T paid O'Neil's $1,000.50 on 1996-08-22.",
            ["The", "U.S.", "-", "based", "AT&T", "paid", "O'Neil", "'s", "$", "1,000.50", "on", "1996-08-22", "."],
        ),
        ("L'Irlande, d’Arvénie: qu'aujourd'hui", ["L'", "Irlande", ",", "d’", "Arvénie", ":", "qu'", "aujourd'hui"]),
        (
            "dell'Orvanie, O'Brien don't rock'n'roll two l's",
            ["dell'", "Orvanie", ",", "O'Brien", "don't", "rock'n'roll", "two", "l", "'s"],
        ),
        ("สำนักงานที่ ๑๒", ["สำ", "นั", "ก", "ง", "า", "น", "ที่", "๑๒"]),
        ("မြန်မာ ភ្នំ\u200bពេញ", ["မြ", "န်", "မာ", "ភ្នំ", "ពេ", "ញ"]),
        ("خانه\u200cسازی Donau\xaddampf क\u200dष ab\xad", ["خانه\u200cسازی", "Donau\xaddampf", "क\u200dष", "ab\xad"]),
        ("👩\u200d👧 👍🏽!", ["👩\u200d👧", "👍🏽", "!"]),
    ],
)
def test_texts_of_several_languages_are_divided_into_words(text, words):
    assert [text[start:end] for start, end in zip(*find_words(text), strict=True)] == words


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("a O\nfilm\n\nthe O\n", ["bad.conll", "line 2 has 1 columns"]),
        ("a O\n\nfilm NOUN\n", ["row 1 of split train", "'NOUN'", "IOB1, IOB2, IOBES or BILOU"]),
        ("a O\n\nfilm O\n", ["train has no entity in it"]),
        ({"tokens": ["a", "film"], "tags": ["O"]}, ["row 0", "2 words but 1 tags"]),
        ({"tokens": ["a", None], "tags": ["O", "O"]}, ["row 0", "its word 2 is None"]),
        ({"tokens": ["a", "film"], "tags": [0, 1]}, ["row 0", "numbers", "B-PER"]),
        ({"text": "a film", "spans": [{"start": 0, "end": 90, "label": "X"}]}, ["row 0", "from 0 to 90", "6 characters"]),
        ({"text": "a film", "spans": [{"from": 0, "label": "X"}]}, ["row 0", "unknown form"]),
        ({"text": "a film", "spans": "film"}, ["row 0", "unknown form"]),
        ({"text": "a film", "label": [[0, 1, "X"], [2, 6, " "]]}, ["row 0", "unknown form", "[2, 6, ' ']"]),
        ({"text": "a film", "label": [[0, True, "X"]]}, ["row 0", "unknown form", "[0, True, 'X']"]),
        ({"tokens": ["a", "film"], "other": ["O", "O"]}, ["label_column", "tokens, other"]),
    ],
)
def test_a_row_that_cannot_be_read_is_named(lines, words, tmp_path):
    file = tmp_path / ("bad.conll" if isinstance(lines, str) else "bad.jsonl")
    file.write_text(lines if isinstance(lines, str) else json.dumps(lines))
    with pytest.raises(UserError) as error:
        load(file)
    assert all(word in str(error.value) for word in words), error.value


def test_a_type_that_train_lacks_is_named_with_its_row(tmp_path):
    for ending, tag in (("train", "B-LOC"), ("testa", "B-LOC"), ("testb", "B-SHIP")):
        (tmp_path / f"eng.{ending}").write_text("\n".join(f"a O\n{i} {tag}\n" for i in range(20)))
    with pytest.raises(UserError, match="split test has entities .*: SHIP .*row 0.*train has LOC"):
        load(tmp_path)
