"""Translation: what is read and in which forms, languages, what is learned, how it is measured, and what bad input leads to."""

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import sentencepiece
import torch
import transformers
from apart import flags_of  # noqa: F401
from conftest import TRANSLATORS, make_model, make_pairs
from huggingface_hub import ModelCard
from sacrebleu.metrics import BLEU
from transformers import AutoModelForSeq2SeqLM, GenerationConfig

from config import Config
from finetuning import beam_search, data, fast, labelling, languages, model, run_folder, tokenizing
from finetuning.errors import UserError
from finetuning.sources import find_model
from finetuning.tasks import translation

CONFIG = Config(task="translation", max_length=16, lora_r=4, precision="float32", eval_batch_size=4)
COLUMNS = ["--source_column", "low", "--target_column", "high"]
FLAGS = ["--task", "translation", *COLUMNS, "--max_length", 16, "--batch_size", 16, "--early_stopping_patience", 0]
LEARN = ["--method", "full", "--learning_rate", 0.003, "--num_train_epochs", 16]


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models") / "marian", "marian")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    file = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    make_pairs().to_csv(file, index=False)
    return file


def test_translation_goes_through_all_the_scripts(marian, pairs, call, tmp_path, monkeypatch):
    flags = [*FLAGS, "--model_name", marian, "--dataset_name", pairs]
    trained = call("fine_tune.py", *flags, *LEARN, "--run_name", "run")
    assert trained.code == 0 and "validation bleu" in trained.out, trained.err
    evaluated = call("evaluate.py")
    assert evaluated.code == 0, evaluated.err
    run = tmp_path / "outputs" / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["bleu"] > 80 and metrics["bleu_ci95"][0] <= metrics["bleu"] <= metrics["bleu_ci95"][1] + 1e-6
    assert "tok:13a" in metrics["bleu_signature"] and metrics["bleu_signature"] in evaluated.out
    sources, references, translations = (
        (run / f"{name}.txt").read_text().splitlines() for name in ("sources", "references", "translations")
    )
    assert BLEU().corpus_score(translations, [references]).score == pytest.approx(metrics["bleu"]), "as any other tool scores them"
    there = pd.read_csv(pairs).set_index("low").high
    assert references == [there[source] for source in sources], "in the order of the rows"
    test = pd.read_parquet(run / "predictions.parquet")
    assert test.reference.tolist() == references and pd.read_csv(run / "errors.csv").chrf.is_monotonic_increasing
    page = (run / "report.html").read_text()
    assert "The worst" in page and "By length of the source" in page and metrics["chrf_signature"] in page
    card = ModelCard.load(run / "adapter" / "README.md")
    assert card.data.pipeline_tag == "translation" and f"BLEU {metrics['bleu']:.2f}" in card.text

    said = call("predict.py", *sources[:5])
    assert said.code == 0 and said.out.splitlines() == translations[:5]
    (tmp_path / "in.txt").write_text("\n".join([sources[0], "", sources[1]]) + "\n")
    lines = call("predict.py", "--file", "in.txt").out.splitlines()
    assert lines == [translations[0], "", translations[1]], "a line in, a line out"
    found = [json.loads(line) for line in call("predict.py", "--json", "--num_beams", 1, *sources[:3]).out.splitlines()]
    assert [one["source"] for one in found] == sources[:3] and all(one["score"] < 0 for one in found)
    assert call("predict.py", "--file", pairs, "--out", "out.csv").code == 0
    out = pd.read_csv("out.csv")
    assert (out.translation == out.high).mean() > 0.8
    nested = [{"translation": {"low": source, "high": "?"}} for source in sources[:3]]
    (tmp_path / "nested.json").write_text(json.dumps(nested))
    assert call("predict.py", "--file", "nested.json", "--text_column", "translation.low").out.splitlines() == translations[:3]
    wrong = call("predict.py", "--num_beams", 0, "1 2")
    assert wrong.code == 2 and "--num_beams 0" in wrong.err
    labeller = labelling.Labeller(run_folder.open_run(run))
    alone = [translation.demo(labeller.model, labeller.tokenizer, source, labeller.run) for source in sources[:20]]
    assert alone == translations[:20], "what app.py shows, one by one, is what was made in batches"

    rounded = call("export.py", "--formats", "ctranslate2-int8")  # 8 bits may cost so small a network too much
    assert rounded.code == 0 or "does not agree" in rounded.err and not (run / "export").exists()
    shutil.rmtree(run / "export", ignore_errors=True)
    exported = call("export.py", "--formats", "merged", "ctranslate2")
    assert exported.code == 0, exported.err
    (_, merged, other) = json.loads((run / "export" / "export.json").read_text())["exports"]
    assert merged["equal_labels"] == 1 and merged["bleu"] > 80
    assert other["format"] == "ctranslate2" and other["equal_labels"] > 0.9
    lora = call("fine_tune.py", *flags, "--run_name", "lora", "--model_name", run / "export" / "merged", "--seed", 1)
    assert lora.code == 0, lora.err
    assert call("evaluate.py", "outputs/lora").code == 0
    compared = call("evaluate.py", run, "outputs/lora")
    assert compared.code == 0 and "paired bootstrap" in compared.out
    assert call("fine_tune.py", *flags, "--method", "head").code == 2


def batch_of(n=6, tokens=12, pad=0):
    torch.manual_seed(0)
    ids, mask = torch.randint(5, 40, (n, tokens)), torch.ones(n, tokens, dtype=torch.long)
    targets = torch.randint(5, 40, (n, tokens + 2))
    for row in range(1, n):
        ids[row, tokens - row :], mask[row, tokens - row :], targets[row, tokens - 2 * row :] = pad, 0, -100
    return {"input_ids": ids, "attention_mask": mask, "targets": targets}


def built(folder, config=CONFIG):
    lora = model.add_lora(model.build_base(find_model(str(folder)), [], config), config)
    torch.manual_seed(1)
    for parameter in lora.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return lora.eval()


@pytest.mark.parametrize("trained", ["lora", "full", "lora and embeddings"])
@pytest.mark.parametrize("model_type", TRANSLATORS)
def test_a_translator_is_adapted_reloads_merges_and_scores_as_the_plain_model(model_type, trained, tmp_path):
    folder = make_model(tmp_path / model_type, model_type)
    config = replace(CONFIG, method=trained.split()[0], train_embeddings="embeddings" in trained)
    if trained == "lora":
        mlp = 12 if model_type in ("mt5", "umt5") else 8
        for target, count in {"query-value": 12, "attention": 24, "mlp": mlp, "all-linear": 24 + mlp}.items():
            lora = model.add_lora(model.build_base(find_model(str(folder)), [], config), replace(config, target_modules=target))
            adapted = [name for name, module in lora.named_modules() if isinstance(module, fast.LoraLinear)]
            assert len(adapted) == count, adapted
            assert not any("lm_head" in name or "embed" in name for name in adapted)
    tuned, rows = built(folder, config), batch_of()
    tuned.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    reloaded = model.load_adapter(
        model.build_base(find_model(str(folder)), [], replace(config, seed=9)), tmp_path / "adapter", config
    )
    with torch.no_grad():
        scores = tuned(**rows).logits
        assert torch.equal(reloaded(**rows).logits, scores)
    reloaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged", attn_implementation="eager").eval()
    same = torch.equal(
        merged.get_input_embeddings().weight, AutoModelForSeq2SeqLM.from_pretrained(folder).get_input_embeddings().weight
    )
    assert same == (trained == "lora")
    start = merged.config.decoder_start_token_id
    read = torch.nn.functional.pad(rows["targets"].clip(min=0)[:, :-1], (1, 0), value=start)
    with torch.no_grad():
        logits = merged(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], decoder_input_ids=read).logits
    likely, here = logits.log_softmax(dim=-1), rows["targets"] >= 0
    chosen = likely.gather(2, rows["targets"].clip(min=0)[..., None])[..., 0].where(here, 0).sum(dim=1)
    expected = torch.stack([chosen, likely.mean(dim=-1).where(here, 0).sum(dim=1), here.sum(dim=1).float()], dim=1)
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3)
    made = [beam_search.search(one, rows["input_ids"], rows["attention_mask"], 3, 8) for one in (tuned, merged)]
    assert torch.equal(*made)


ENDS = list(range(4, 96, 4))  # so many that random weights end soon, some rows long before others
SEARCHES = [
    dict(num_beams=1),
    dict(num_beams=4),
    dict(num_beams=4, early_stopping=True),
    dict(num_beams=4, early_stopping="never", length_penalty=0.5),
    dict(num_beams=2, bad_words_ids=[[7], [8]], forced_eos_token_id=4),
    dict(num_beams=2, bad_words_ids=[[7], [8]], renormalize_logits=True, length_penalty=2.0),
]


@pytest.mark.parametrize("model_type", TRANSLATORS)
def test_the_search_finds_what_the_libraries_finds(model_type, tmp_path):
    base = AutoModelForSeq2SeqLM.from_pretrained(make_model(tmp_path / model_type, model_type)).eval()
    torch.manual_seed(1)
    for parameter in base.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    rows = batch_of(24)
    inputs = {name: rows[name] for name in ("input_ids", "attention_mask")}
    lengths = set()
    for settings in SEARCHES:
        for first in (None, 20):
            base.generation_config = GenerationConfig(
                pad_token_id=base.config.pad_token_id,
                eos_token_id=ENDS,
                decoder_start_token_id=base.config.decoder_start_token_id,
                **{name: value for name, value in settings.items() if name != "num_beams"},
            )
            assert beam_search.honours(base.generation_config)
            asked = dict(num_beams=settings["num_beams"], max_new_tokens=9, forced_bos_token_id=first)
            found, expected = (
                [until_the_end(row) for row in one.tolist()]
                for one in (beam_search.search(base, **inputs, **asked), base.generate(**inputs, **asked)[:, 1:])
            )
            assert found == expected
            lengths |= set(map(len, found))
    assert len(lengths) > 1, "all ended together"


def until_the_end(ids: list[int]) -> list[int]:
    ends = [place for place, word in enumerate(ids) if word in ENDS]
    return ids[: ends[0] + 1] if ends else ids


@pytest.mark.parametrize("asked", [dict(no_repeat_ngram_size=3), dict(bad_words_ids=[[5, 6]]), dict(repetition_penalty=1.5)])
def test_what_the_search_does_not_do_is_left_to_the_library(asked):
    ends = dict(decoder_start_token_id=0, eos_token_id=1, pad_token_id=0)
    assert beam_search.honours(GenerationConfig(**ends)) and not beam_search.honours(GenerationConfig(**ends, **asked))


def test_what_is_left_to_the_library_is_not_drawn_by_chance(marian):
    config = replace(CONFIG, source_column="low", target_column="high")
    source = find_model(str(marian))
    base, tokenizer = model.build_base(source, [], config).eval(), model.load_tokenizer(source, config)
    base.generation_config.update(do_sample=True, temperature=5.0, no_repeat_ngram_size=5)
    tokens = translation.tokens_of({"source": ["1 2 3", "4 5 6 7"]}, tokenizer, config)
    drawn = [translation.translate(base, tokenizer, tokens, config, 1, False) for _ in range(3)]
    assert not beam_search.honours(base.generation_config) and drawn[0] == drawn[1] == drawn[2]


@pytest.mark.parametrize("model_type", TRANSLATORS)
def test_the_fast_road_has_the_libraries_gradients(model_type, tmp_path, monkeypatch):
    folder, found = make_model(tmp_path / model_type, model_type), []
    for own in (False, True):
        if own:  # peft's and PyTorch's own code
            monkeypatch.setattr(fast, "on_cpu", lambda: False)
            monkeypatch.setattr(fast, "fuse_lora", lambda model: None)
        lora = built(folder).train()
        scores = lora(**batch_of()).logits
        translation.loss(None, 0, replace(CONFIG, label_smoothing_factor=0.1))(scores, None).backward()
        found.append({name: p.grad for name, p in lora.named_parameters() if p.grad is not None})
    ours, stock = found
    assert ours.keys() == stock.keys() and len(ours) > 20
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, stock[name], rtol=1e-3, atol=float(1e-4 * stock[name].abs().max()))


def test_weights_that_the_base_model_keeps_frozen_stay_so_in_full_fine_tuning(marian):
    tuned = built(marian, replace(CONFIG, method="full"))
    frozen = [name for name, p in tuned.named_parameters() if not p.requires_grad]
    assert len(frozen) == 2 and all("embed_positions" in name for name in frozen)
    words = tuned.get_base_model()
    embeddings = words.model.modules_to_save["default"]
    assert words.lm_head.weight is embeddings.shared.weight is embeddings.decoder.embed_tokens.weight


def test_the_loss_is_smoothed_as_pytorch_has_it(marian):
    tuned = built(marian)
    start, rows = tuned.get_base_model().config.decoder_start_token_id, batch_of()
    scores = tuned(**rows).logits
    plain = tuned.get_base_model()(
        input_ids=rows["input_ids"],
        attention_mask=rows["attention_mask"],
        decoder_input_ids=torch.nn.functional.pad(rows["targets"].clip(min=0)[:, :-1], (1, 0), value=start),
    ).logits
    expected = torch.nn.functional.cross_entropy(
        plain.flatten(0, 1), rows["targets"].flatten(), label_smoothing=0.1, reduction="sum"
    )
    found = translation.loss(None, 0, replace(CONFIG, label_smoothing_factor=0.1))(scores, None)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


# --- languages -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Each family's own tokenizer class, with a small vocabulary."""
    folder = tmp_path_factory.mktemp("tokenizers")
    texts = folder / "texts.txt"
    texts.write_text(
        "\n".join(
            [
                "a man rides a horse",
                "ein mann reitet ein pferd",
                "two dogs run",
                "zwei hunde laufen",
                "0 1 2 3 4 5 6 7 20 21 22 23 24",
            ]
            * 20
        )
    )
    sentencepiece.SentencePieceTrainer.train(input=str(texts), model_prefix=str(folder / "spm"), vocab_size=36, minloglevel=2)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    words = [pieces.id_to_piece(i) for i in range(pieces.get_piece_size())]
    special = ["</s>", "<unk>", "<pad>", ">>deu<<", ">>fra<<"]
    vocab = {word: i for i, word in enumerate([*special, *(word for word in words if word not in (*special, "<s>"))])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    fair = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *words[3:]])}
    (folder / "m2m.json").write_text(json.dumps(fair))
    listed, spm = [(word, 0.0) for word in words], str(folder / "spm.model")
    return {
        "marian": transformers.MarianTokenizer(spm, spm, str(folder / "vocab.json")),
        "m2m100": transformers.M2M100Tokenizer(str(folder / "m2m.json"), spm),
        "mbart50": transformers.MBart50Tokenizer(listed),
        "nllb": transformers.NllbTokenizer(),
        "t5": transformers.T5Tokenizer(listed),
    }


FORMS = {  # what is before and behind the source and the target, and the first token of what is generated
    "marian": ([">>deu<<"], ["</s>"], [], ["</s>"], None),
    "m2m100": (["__en__"], ["</s>"], ["__de__"], ["</s>"], "__de__"),
    "mbart50": (["en_XX"], ["</s>"], ["de_DE"], ["</s>"], "de_DE"),
    "nllb": (["eng_Latn"], ["</s>"], ["deu_Latn"], ["</s>"], "deu_Latn"),
}


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("names", [("en", "de"), ("English", "German"), ("eng", "deu")])
def test_a_model_of_many_languages_is_told_which_two(kind, names, tokenizers):
    config = replace(CONFIG, source_lang=names[0], target_lang=names[1], max_length=40)
    found = translation.tokenize({"source": ["a man"], "target": ["ein mann"]}, tokenizers[kind], config)
    before, behind, target_before, target_behind, first = FORMS[kind]
    tokens, targets = (tokenizers[kind].convert_ids_to_tokens(found[side][0]) for side in ("input_ids", "targets"))
    assert tokens[: len(before)] == before and tokens[-len(behind) :] == behind
    assert targets[: len(target_before)] == target_before and targets[-len(target_behind) :] == target_behind
    told = languages.direction(tokenizers[kind], config)["first"]
    assert (told is not None and tokenizers[kind].convert_ids_to_tokens(told)) == (first or False)


def test_t5_is_told_the_languages_by_their_names(tokenizers):
    config = replace(CONFIG, source_lang="en", target_lang="deu")
    assert languages.direction(tokenizers["t5"], config)["prefix"] == "translate English to German: "
    with pytest.raises(UserError, match="source_lang=None is no language"):
        languages.direction(tokenizers["t5"], CONFIG)


@pytest.mark.parametrize("kind", FORMS)
def test_a_language_that_the_model_lacks_is_refused_with_those_it_has(kind, tokenizers):
    with pytest.raises(UserError, match=r"target_lang=Klingon is not a language of .*de.*fr"):
        languages.direction(tokenizers[kind], replace(CONFIG, source_lang="en", target_lang="Klingon"))


# --- forms of data, and bad input ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parallel(tmp_path_factory):
    """The same pairs with their splits in all the forms that are read."""
    folder = tmp_path_factory.mktemp("forms")
    rows = make_pairs(90).rename(columns={"low": "en", "high": "de"})
    splits = {"train": rows[:60], "validation": rows[60:75], "test": rows[75:]}
    for kind in ("csv", "jsonl", "parquet", "nested", "lines", "packed"):
        (folder / kind).mkdir()
    for name, part in splits.items():
        part.to_csv(folder / "csv" / f"{name}.csv", index=False)
        part.to_json(folder / "jsonl" / f"{name}.jsonl", orient="records", lines=True)
        part.to_parquet(folder / "parquet" / f"{name}.parquet")
        pd.DataFrame({"id": range(len(part)), "translation": part.to_dict("records")}).to_json(
            folder / "nested" / f"{name}.jsonl", orient="records", lines=True
        )
        for lang in ("en", "de"):
            stem = {"train": "train", "validation": "val", "test": "test_2016_flickr"}[name]
            (folder / "lines" / f"{stem}.{lang}").write_bytes("".join(f"{text}\r\n" for text in part[lang]).encode())
            pd.Series(part[lang]).to_csv(folder / "packed" / f"{stem}.{lang}.gz", index=False, header=False)
    return folder


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "nested", "lines", "packed"])
def test_all_forms_give_the_same_pairs(form, parallel):
    config = replace(CONFIG, source_column="en", target_column="de")
    expected = data.load_data(replace(config, dataset_name=str(parallel / "csv")))
    found = data.load_data(replace(config, dataset_name=str(parallel / form)))
    assert found.sha256 == expected.sha256 and (found.config.source_lang, found.config.target_lang) == ("en", "de")
    assert found.validation_split == "official validation" and found.test.columns() == expected.test.columns()


def test_one_of_two_files_line_by_line_is_enough(parallel):
    found = data.load_data(replace(CONFIG, dataset_name=str(parallel / "lines" / "train.en"), source_lang="English", source_column="en",
                                   target_column="de"))  # fmt: skip
    assert len(found.train) + len(found.validation) + len(found.test) == 60 and found.config.source_lang == "English"


def test_languages_find_their_columns(parallel):
    found = data.load_data(replace(CONFIG, dataset_name=str(parallel / "nested"), source_lang="de", target_lang="en"))
    assert (found.config.source_column, found.config.target_column) == ("translation.de", "translation.en")


def rows_with(**changed) -> pd.DataFrame:
    rows = make_pairs(100).rename(columns={"low": "source", "high": "target"})
    for position, (source, target) in changed.items():
        rows.loc[int(position[1:])] = (source or rows.source[int(position[1:])], target)
    return rows


def loaded(tmp_path, train, **settings):
    train.to_csv(tmp_path / "pairs.csv", index=False)
    return data.load_data(replace(CONFIG, dataset_name=str(tmp_path / "pairs.csv"), **settings))


def test_doubtful_pairs_are_counted_and_left_out_only_where_asked(tmp_path):
    rows = rows_with(r3=("21 22 23", "1 2 3"), r5=("1 2", "21 22 " * 40), r7=("8 9 8", "8 9 8"))
    kept, without = (loaded(tmp_path, rows, on_bad_rows=choice) for choice in ("error", "skip"))
    assert sum(len(split) for split in (kept.train, kept.validation, kept.test)) == 100
    said = "\n".join(kept.remarks)
    assert "1 of 100 pairs of split train have changed sides" in said and "row 3" in said
    assert "absurdly different lengths (row 5)" in said and "equal texts on both sides (row 7)" in said
    assert sum(len(split) for split in (without.train, without.validation, without.test)) == 98, "equal ones may be right"


def test_empty_sides_are_refused_with_their_rows_or_left_out(tmp_path):
    rows = rows_with(r4=(None, ""), r8=(" ", "21"))
    with pytest.raises(UserError, match=r"2 of 100 rows .* with an empty text \(row 4, 8\).*on_bad_rows"):
        loaded(tmp_path, rows)
    assert "left out" in loaded(tmp_path, rows, on_bad_rows="skip").remarks[0]


def test_equal_sources_stay_on_one_side_of_a_split(tmp_path):
    rows = pd.concat([rows_with(), rows_with().assign(target="27 26")])
    found = loaded(tmp_path, rows)
    held_out = {*found.test.columns()["source"], *found.validation.columns()["source"]}
    assert len(held_out) > 20 and not held_out & {*found.train.columns()["source"]}


def test_columns_that_changed_places_in_one_split_are_refused(tmp_path):
    rows = rows_with()
    rows[:60].to_csv(tmp_path / "train.csv", index=False)
    rows[60:].rename(columns={"source": "target", "target": "source"}).to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(UserError, match="split test: source and target have changed places"):
        data.load_data(replace(CONFIG, dataset_name=str(tmp_path)))


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--target_column", "low"], "source_column and target_column are both 'low'"),
        (["--target_column", "other"], "target_column=other is not there; the columns are low, high"),
        (["--text_column", "low"], "text_column=low is not for translation"),
        (["--context", "neighbours"], "context=neighbours is not for translation"),
        (["--augmentation", "crop"], "augmentation=crop is not for translation"),
        (["--task", "text-classification"], "source_column=low is not for text-classification"),
        (["--num_beams", 0], "num_beams=0 is out of range"),
        (["--truncation", "error", "--max_length", 8], "tokens is longer than max_length=8"),
        (["--max_length", 65], "beyond the 64 positions"),
    ],
)
def test_bad_settings_are_refused(flags, said, marian, pairs, call):
    rows = pd.read_csv(pairs)
    rows.loc[0, "low"] = "1 2 3 4 5 6 7 1 2 3 4"
    rows.to_csv("pairs.csv", index=False)
    result = call("fine_tune.py", *FLAGS, "--model_name", marian, "--dataset_name", "pairs.csv", *flags)
    assert result.code == 2 and said in result.err and "Traceback" not in result.err


def test_a_text_that_is_cut_is_counted(marian, pairs, call):
    result = call(
        "fine_tune.py", *FLAGS, "--model_name", marian, "--dataset_name", pairs, "--max_length", 8, "--num_train_epochs", 1
    )
    assert result.code == 0 and "cut " not in result.out
    rows = pd.read_csv(pairs)
    rows["low"] += " 1 2 3 4 5 6 7"
    rows.to_csv("pairs.csv", index=False)
    flags = [
        "--model_name",
        marian,
        "--dataset_name",
        "pairs.csv",
        "--max_length",
        8,
        "--num_train_epochs",
        1,
        "--run_name",
        "long",
    ]
    result = call("fine_tune.py", *FLAGS, *flags)
    assert result.code == 0 and "280 training texts (100.0%) to max_length=8" in result.out, result.out
    assert call("evaluate.py").code == 0


def test_a_script_that_the_tokenizer_does_not_know_is_refused(marian, tmp_path, call):
    make_pairs(60).assign(low="漢 字 漢 字 漢 字").to_csv("pairs.csv", index=False)
    rows = make_pairs(60)
    rows["low"] = [f"漢 字 {text}" for text in rows.low.str.replace(r"\d", "語", regex=True)]
    rows["low"] += [" 文" * i for i in range(60)]
    rows.to_csv("pairs.csv", index=False)
    result = call("fine_tune.py", *FLAGS, "--model_name", marian, "--dataset_name", "pairs.csv")
    assert result.code == 2 and "unknown to" in result.err and "script" in result.err


def test_files_that_are_not_line_for_line_are_refused(tmp_path):
    (tmp_path / "a.en").write_text("1\n2\n3\n")
    (tmp_path / "a.de").write_text("21\n22\n")
    with pytest.raises(UserError, match="a.de has 2, a.en has 3 lines"):
        data.load_data(replace(CONFIG, dataset_name=str(tmp_path)))
    (tmp_path / "a.de").unlink()
    with pytest.raises(UserError, match="there is en only"):
        data.load_data(replace(CONFIG, dataset_name=str(tmp_path)))


def test_the_tokens_of_a_split_are_those_of_its_languages(tokenizers, parallel, tmp_path):
    tokenizers["mbart50"].save_pretrained(tmp_path / "mbart50")
    config = replace(CONFIG, dataset_name=str(parallel / "csv"), source_column="en", target_column="de", max_length=40)
    rows, found = data.load_data(config), []
    for lang in ("de", "fr"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "mbart50")
        found.append(tokenizing.encode(rows.test, tokenizer, replace(rows.config, target_lang=lang)).inputs)
    assert found[0]["input_ids"] == found[1]["input_ids"] and found[0]["targets"][0][1:] == found[1]["targets"][0][1:]
    assert tokenizer.convert_ids_to_tokens([one["targets"][0][0] for one in found]) == ["de_DE", "fr_XX"]
