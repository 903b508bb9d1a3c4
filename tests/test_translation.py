"""Translation: data, languages, training, beam search, metrics, and errors for bad input."""

import copy
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import sentencepiece
import torch
import transformers
from conftest import TRANSLATORS, make_model, make_pairs
from datasets import Dataset
from huggingface_hub import ModelCard
from peft.tuners.lora import Linear as LoraLinear
from sacrebleu.metrics import BLEU, CHRF, TER
from transformers import AutoModelForSeq2SeqLM, GenerationConfig

from config import Config
from finetuning import speed
from finetuning.data import languages, reading, splits
from finetuning.data import tokens as tokenizing
from finetuning.data.sources import find_model
from finetuning.errors import UserError
from finetuning.model import base as base_models
from finetuning.model import lora
from finetuning.results import bleu, metrics, run_folder
from finetuning.speed import beam_search
from finetuning.task import Evaluation
from finetuning.tasks import pick
from finetuning.tasks.translation import Translation, Translations, references
from finetuning.training.prediction import Predictor
from finetuning.use.predicting import load_engine

TASK = Translation()
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


@pytest.mark.predictions
def test_translation_goes_through_all_the_scripts(marian, pairs, call, tmp_path, monkeypatch, pictures):
    flags = [*FLAGS, "--model_name", marian, "--dataset_name", pairs]
    trained = call("fine_tune.py", *flags, *LEARN, "--run_name", "run")
    assert trained.code == 0 and "validation  bleu" in trained.out and "cut " not in trained.out, trained.err
    evaluated = call("evaluate.py")
    assert evaluated.code == 0, evaluated.err
    run = tmp_path / "outputs" / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    low, high = metrics["bleu_ci95"] or [metrics["bleu"]] * 2  # no interval if all translations are right
    assert metrics["bleu"] > 80 and low <= metrics["bleu"] <= high + 1e-6
    assert "tok:13a" in metrics["bleu_signature"] and metrics["bleu_signature"] in evaluated.out
    sources, references, translations = (
        (run / f"{name}.txt").read_text().splitlines() for name in ("sources", "references", "translations")
    )
    assert BLEU().corpus_score(translations, [references]).score == pytest.approx(metrics["bleu"]), "as sacreBLEU scores the files"
    targets = pd.read_csv(pairs).set_index("low").high
    assert references == [targets[source] for source in sources], "in the order of the rows"
    test = pd.read_parquet(run / "predictions.parquet")
    assert test.reference.tolist() == references and pd.read_csv(run / "errors.csv").chrf.is_monotonic_increasing
    page = (run / "report.html").read_text()
    assert "The worst" in page and "By length" in page and metrics["chrf_signature"] in page
    assert "beam search with 5 beams" in page and "longer sources are cut to 16 tokens (truncation=head)" in page
    card = ModelCard.load(run / "adapter" / "README.md")
    assert card.data.pipeline_tag == "translation" and f"BLEU {metrics['bleu']:.2f}" in card.text

    predicted = call("predict.py", *sources[:5])
    assert predicted.code == 0 and predicted.out.splitlines() == translations[:5]
    (tmp_path / "in.txt").write_text("\n".join([sources[0], "", sources[1]]) + "\n")
    lines = call("predict.py", "--file", "in.txt").out.splitlines()
    assert lines == [translations[0], "", translations[1]], "one translation for each line"
    answers = [json.loads(line) for line in call("predict.py", "--json", "--num_beams", 1, *sources[:3]).out.splitlines()]
    assert [answer["source"] for answer in answers] == sources[:3] and all(answer["score"] < 0 for answer in answers)
    assert call("predict.py", "--file", pairs, "--out", "out.csv").code == 0
    out = pd.read_csv("out.csv")
    assert (out.translation == out.high).mean() > 0.8
    nested = [{"translation": {"low": source, "high": "?"}} for source in sources[:3]]
    (tmp_path / "nested.json").write_text(json.dumps(nested))
    assert call("predict.py", "--file", "nested.json", "--text_column", "translation.low").out.splitlines() == translations[:3]
    wrong = call("predict.py", "--num_beams", 0, "1 2")
    assert wrong.code == 2 and "--num_beams 0" in wrong.err
    predictor = load_engine(run_folder.open_run(run, pick), "torch")
    alone = [TASK.widget_values(predictor, source) for source in sources[:20]]
    assert alone == [[text] for text in translations[:20]], "app.py translates single texts as the evaluation does in batches"

    rounded = call("export.py", "--formats", "ctranslate2-int8")  # 8 bits may cost so small a network too much
    assert rounded.code == 0 or "does not agree" in rounded.out + rounded.err
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
    assert compared.code == 0 and "about these two models" in compared.out and "chrf" in compared.out, compared.err
    differing = pd.read_csv(run / "against-lora.csv")
    assert {"row", "source", "reference", "translation_a", "translation_b", "chrf_a", "chrf_b"} <= {*differing}
    assert call("fine_tune.py", *flags, "--method", "head").code == 2


def batch_of(n=6, tokens=12, pad=0):
    """Return `n` random sources and targets of different lengths."""
    torch.manual_seed(0)
    ids, mask = torch.randint(5, 40, (n, tokens)), torch.ones(n, tokens, dtype=torch.long)
    targets = torch.randint(5, 40, (n, tokens + 2))
    for row in range(1, n):
        ids[row, tokens - row :], mask[row, tokens - row :], targets[row, tokens - 2 * row :] = pad, 0, -100
    return {"input_ids": ids, "attention_mask": mask, "targets": targets}


def with_lora(folder, config):
    return lora.add_lora(TASK, base_models.build_base(TASK, find_model(str(folder)), [], config), config)


def built(folder, config=CONFIG):
    """Return a model whose trainable weights were changed at random: new LoRA weights change nothing, which would hide errors."""
    model = with_lora(folder, config)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def predictor_of(folder, config=CONFIG, **generation):
    source = find_model(str(folder))
    base = base_models.build_base(TASK, source, [], config).eval()
    base.generation_config.update(**generation)
    return Predictor(TASK, base, base_models.load_tokenizer(TASK, source, config), config)


def loss_of(scores):
    return TASK.loss_function(None, 0, replace(CONFIG, label_smoothing_factor=0.1))(scores, None)


@pytest.mark.parametrize("trained", ["lora", "full", "lora and embeddings"])
@pytest.mark.parametrize("model_type", TRANSLATORS)
def test_a_translator_is_adapted_reloads_merges_and_scores_as_the_plain_model(model_type, trained, tmp_path):
    folder = make_model(tmp_path / model_type, model_type)
    config = replace(CONFIG, method=trained.split()[0], train_embeddings="embeddings" in trained)
    if trained == "lora":
        mlp = 12 if model_type in ("mt5", "umt5") else 8
        for target, count in {"query-value": 12, "attention": 24, "mlp": mlp, "all-linear": 24 + mlp}.items():
            model = with_lora(folder, replace(config, target_modules=target))
            adapted = [name for name, module in model.named_modules() if isinstance(module, LoraLinear)]
            assert len(adapted) == count, adapted
            assert not any("lm_head" in name or "embed" in name for name in adapted)
    tuned, rows = built(folder, config), batch_of()
    tuned.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    fresh = base_models.build_base(TASK, find_model(str(folder)), [], replace(config, seed=9))
    reloaded = lora.load_adapter(fresh, tmp_path / "adapter", config)
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
    log_probabilities, mask = logits.log_softmax(dim=-1), rows["targets"] >= 0
    chosen = log_probabilities.gather(2, rows["targets"].clip(min=0)[..., None])[..., 0].where(mask, 0).sum(dim=1)
    mean = log_probabilities.mean(dim=-1).where(mask, 0).sum(dim=1)
    torch.testing.assert_close(scores, torch.stack([chosen, mean, mask.sum(dim=1).float()], dim=1), rtol=1e-3, atol=1e-3)
    assert torch.equal(*(beam_search.search(model, rows["input_ids"], rows["attention_mask"], 3, 8) for model in (tuned, merged)))


ENDS = list(range(4, 96, 4))  # so many end tokens that a model with random weights ends some rows long before others
SEARCHES = [
    dict(num_beams=1),
    dict(num_beams=4),
    dict(num_beams=4, early_stopping=True),
    dict(num_beams=4, early_stopping="never", length_penalty=0.5),
    dict(num_beams=2, bad_words_ids=[[7], [8]], forced_eos_token_id=4),
    dict(num_beams=2, bad_words_ids=[[7], [8]], renormalize_logits=True, length_penalty=2.0),
]


@pytest.mark.parametrize("model_type", TRANSLATORS)
def test_beam_search_gives_the_results_of_generate(model_type, tmp_path):
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
            assert beam_search.supports(base.generation_config)
            options = dict(num_beams=settings["num_beams"], max_new_tokens=9, forced_bos_token_id=first)
            ids = beam_search.search(base, **inputs, **options), base.generate(**inputs, **options)[:, 1:]
            ours, theirs = ([until_the_end(row) for row in batch.tolist()] for batch in ids)
            assert ours == theirs
            lengths |= set(map(len, ours))
    assert len(lengths) > 1, "all ended together"


def until_the_end(ids: list[int]) -> list[int]:
    positions = [position for position, token in enumerate(ids) if token in ENDS]
    return ids[: positions[0] + 1] if positions else ids


@pytest.mark.parametrize("settings", [dict(no_repeat_ngram_size=3), dict(bad_words_ids=[[5, 6]]), dict(repetition_penalty=1.5)])
def test_settings_that_beam_search_lacks_are_left_to_generate(settings):
    tokens = dict(decoder_start_token_id=0, eos_token_id=1, pad_token_id=0)
    assert beam_search.supports(GenerationConfig(**tokens)) and not beam_search.supports(GenerationConfig(**tokens, **settings))


def test_translations_are_not_sampled_even_if_the_model_asks_for_it(marian):
    predictor = predictor_of(marian, do_sample=True, temperature=5.0, no_repeat_ngram_size=5)
    tokens = tokenizing.encode_batch(TASK, {"source": ["1 2 3", "4 5 6 7"]}, predictor.tokenizer, CONFIG)
    first, second = (TASK.translate(predictor, tokens, 1) for _ in range(2))
    assert not beam_search.supports(predictor.model.generation_config) and first == second


@pytest.mark.predictions
@pytest.mark.parametrize("num_beams", [1, 3])
def test_without_speedups_generate_makes_the_same_translations(num_beams, marian, monkeypatch):
    texts, translations, calls = [f"{i} {i % 7} {i % 3}" * (1 + i % 3) for i in range(20)], [], []
    search = beam_search.search
    monkeypatch.setattr(beam_search, "search", lambda *arguments, **options: calls.append(1) or search(*arguments, **options))
    for speedups in (True, False):
        predictor = predictor_of(marian, replace(CONFIG, speedups=speedups))
        tokens = tokenizing.encode_batch(TASK, {"source": texts}, predictor.tokenizer, CONFIG)
        translations.append((TASK.translate(predictor, tokens, num_beams), len(calls)))
    (fast, calls_before), (plain, calls_after) = translations
    assert fast == plain and calls_before == calls_after > 0, "beam_search is called with speedups only"


@pytest.mark.parametrize("model_type", TRANSLATORS)
def test_speedups_keep_the_libraries_gradients(model_type, tmp_path):
    folder, gradients = make_model(tmp_path / model_type, model_type), []
    for speedups in (True, False):
        model = built(folder, replace(CONFIG, speedups=speedups)).train()
        loss_of(model(**batch_of()).logits).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    fast, plain = gradients
    assert fast.keys() == plain.keys() and len(fast) > 20
    for name, gradient in fast.items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-3, atol=float(1e-4 * plain[name].abs().max()))


@pytest.mark.parametrize("model_type", TRANSLATORS)
def test_a_translator_trains_in_bf16(model_type, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "pick_precision", lambda wanted: ("bf16", ""))
    model = built(make_model(tmp_path / model_type, model_type), replace(CONFIG, precision="auto")).train()
    loss_of(model(**batch_of()).logits).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_full_fine_tuning_keeps_the_weights_frozen_that_the_base_model_freezes(marian):
    tuned = built(marian, replace(CONFIG, method="full"))
    frozen = [name for name, p in tuned.named_parameters() if not p.requires_grad]
    assert len(frozen) == 2 and all("embed_positions" in name for name in frozen)
    base = tuned.get_base_model()
    trained = base.model.modules_to_save["default"]
    assert base.lm_head.weight is trained.shared.weight is trained.decoder.embed_tokens.weight


def test_the_smoothed_loss_equals_that_of_pytorch(marian):
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
    torch.testing.assert_close(loss_of(scores), expected, rtol=1e-4, atol=1e-3)


# --- metrics -------------------------------------------------------------------------------------------------------------


def test_metrics_equal_sacrebleus_on_all_rows_and_on_any_subset():
    references = [f"the man number {i} rides a {'white ' * (i % 3)}horse , at {i}:30 ." for i in range(60)]
    texts = [" ".join(word for n, word in enumerate(text.split()) if (n * 7 + i) % 5) for i, text in enumerate(references)]
    predictions = Translations(np.stack([np.linspace(-2, -1, 60), np.arange(1, 61)], axis=1), texts, references)
    statistics = TASK.statistics(predictions, split_of(references), {})
    for rows in (np.arange(60), np.arange(60) % 3 == 1, np.array([5])):
        part = metrics.select(statistics, rows)
        chosen = np.arange(60)[rows]
        corpus = [texts[i] for i in chosen], [[references[i] for i in chosen]]
        for metric, scorer in zip(TASK.metrics, (BLEU(), CHRF(), TER()), strict=False):
            assert metric.of(part) == scorer.corpus_score(*corpus).score, metric.name
    assert bleu.GREEDY_BLEU.of(statistics) == pytest.approx(100), "the greedy translations are the references"
    means, counts = predictions.scores.T
    assert TASK.metrics[-1].of(statistics) == pytest.approx(-np.average(means, weights=counts))


@pytest.mark.parametrize(("language", "note"), [("zh", "tokenizer zh"), ("de", None)])
def test_a_note_names_the_tokenizer_of_bleu_before_training(language, note, tmp_path):
    texts = {"zh": [f"{text}{i}" for i in range(8) for text in CHINESE], "de": [f"Ein Mann reitet {i} mal." for i in range(32)]}[
        language
    ]
    (tmp_path / "train.en").write_text("".join(f"a text of number {i}\n" for i in range(32)), "utf-8")
    (tmp_path / f"train.{language}").write_text("".join(f"{text}\n" for text in texts), "utf-8")
    config = replace(CONFIG, dataset_name=str(tmp_path), source_column="en", target_column=language, train_samples=0)
    remarks = " ".join(splits.load_data(TASK, config).remarks)
    assert note in remarks if note else "tokenizer" not in remarks


CHINESE = ["两个孩子在公园里看书。", "他们正在河边慢慢地走路。", "我用 iPhone 看 YouTube 视频。", "一个女人在窗台上画一只猫。"]


@pytest.mark.parametrize(
    ("language", "texts", "tokenizer"),
    [
        ("zh", CHINESE, "zh"),
        ("zh-CN", ["abc"], "zh"),
        (None, CHINESE, "zh"),
        ("tgt", CHINESE, "zh"),  # the name of a column; it is also the code of a language
        (None, ["これは短い文です。", "彼は学生だ。"], ("ja-mecab", "char")),
        ("ko", ["그는 학생이다."], ("ko-mecab", "char")),
        (None, ["เขาเป็นนักเรียน"], "char"),
        ("Lao", ["abc"], "char"),
        ("de", ["Ein Mann reitet."], "13a"),
        (None, ["The word 苹果 means apple."], "13a"),
        (None, ["Он читает книгу."], "13a"),
        (None, [], "13a"),
    ],
)
def test_the_tokenizer_of_bleu_is_that_of_the_target_language(language, texts, tokenizer):
    assert bleu.tokenizer(languages.special_script(language, texts)) in tokenizer


@pytest.mark.parametrize("language", ["zh", None])
def test_translations_without_spaces_are_scored_by_their_characters(language):
    """Scores equal sacreBLEU's for Chinese. If spaces divided words, each text would be one word and most scores would be 0."""
    for texts, ter in ((CHINESE, 0), ([text[:-2] + "着。" for text in CHINESE], 12)):
        predictions = Translations(np.ones((4, 2)), texts, CHINESE, language)
        statistics = TASK.statistics(predictions, split_of(CHINESE), {})
        assert TASK.metrics[0].of(statistics) == BLEU(trg_lang="zh").corpus_score(texts, [CHINESE]).score > 70
        assert bleu.GREEDY_BLEU.of(statistics) == pytest.approx(100)
        assert TASK.metrics[2].of(statistics) == pytest.approx(ter, abs=3)
    evaluation = Evaluation(predictions, split_of(CHINESE), np.ones(4), [], {}, replace(CONFIG, target_lang=language))
    assert TASK.lengths(evaluation).values.tolist() == [len(text.replace(" ", "")) for text in CHINESE]
    details = TASK.details(replace(evaluation, statistics=statistics))
    assert "tok:zh|" in details["bleu_signature"] and "tok:zh+" in details["ter_signature"]
    assert "tokenizer zh, not words" in bleu.note(details["bleu_signature"])


def test_intervals_are_close_to_sacrebleus():
    references = [f"the man number {i} rides a {'white ' * (i % 3)}horse , at {i}:30 ." for i in range(200)]
    texts = [" ".join(word for n, word in enumerate(text.split()) if (n * 7 + i * i) % 5) for i, text in enumerate(references)]
    statistics = TASK.statistics(Translations(np.ones((200, 2)), texts, texts), split_of(references), {})
    for metric, scorer in zip(TASK.metrics, (BLEU(), CHRF(), TER()), strict=False):
        score = scorer.corpus_score(texts, [references], n_bootstrap=1000)
        low, high = metrics.interval(metric, statistics)
        assert [low, high] == pytest.approx([score._mean - score._ci, score._mean + score._ci], abs=0.1 * (high - low))


def test_signatures_name_one_reference_and_no_bootstrap():
    bleu.statistics("bleu", ["a man"], ["a man"], ["a person"])  # two references in an evaluation before this one
    assert bleu.signatures()["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


def split_of(references):
    raw = datasets.Dataset.from_dict({"source": references, "target": references})
    rows = np.arange(len(references))
    return splits.Split(raw, rows, np.zeros_like(rows), rows.astype(np.uint64))


# --- languages -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Return a tokenizer with a small vocabulary for each model family, of the class that the family uses."""
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
        "mbart25": transformers.MBartTokenizer(listed),
        "mbart50": transformers.MBart50Tokenizer(listed),
        "nllb": transformers.NllbTokenizer(),
        "t5": transformers.T5Tokenizer(listed),
    }


FORMATS = {  # tokens before and after the source, before and after the target, and the first generated token
    "marian": ([">>deu<<"], ["</s>"], [], ["</s>"], None),
    "m2m100": (["__en__"], ["</s>"], ["__de__"], ["</s>"], "__de__"),
    "mbart50": (["en_XX"], ["</s>"], ["de_DE"], ["</s>"], "de_DE"),
    "nllb": (["eng_Latn"], ["</s>"], ["deu_Latn"], ["</s>"], "deu_Latn"),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("names", [("en", "de"), ("English", "German"), ("eng", "deu")])
def test_a_multilingual_model_gets_the_tokens_of_the_two_languages(kind, names, tokenizers):
    config = replace(CONFIG, source_lang=names[0], target_lang=names[1], max_length=40)
    examples = TASK.tokenize({"source": ["a man"], "target": ["ein mann"]}, tokenizers[kind], config)
    before, after, target_before, target_after, first = FORMATS[kind]
    tokens, targets = (tokenizers[kind].convert_ids_to_tokens(examples[side][0]) for side in ("input_ids", "targets"))
    assert tokens[: len(before)] == before and tokens[-len(after) :] == after
    assert targets[: len(target_before)] == target_before and targets[-len(target_after) :] == target_after
    forced = languages.set_direction(tokenizers[kind], config)["forced_bos_token_id"]
    assert (None if forced is None else tokenizers[kind].convert_ids_to_tokens(forced)) == first


def test_t5_gets_a_prefix_with_the_names_of_the_languages(tokenizers):
    config = replace(CONFIG, source_lang="en", target_lang="deu")
    assert languages.set_direction(tokenizers["t5"], config)["prefix"] == "translate English to German: "
    with pytest.raises(UserError, match="source_lang=None is not a language"):
        languages.set_direction(tokenizers["t5"], CONFIG)


def test_madlad_gets_the_token_of_the_target_language(tokenizers):
    tokenizer = copy.deepcopy(tokenizers["t5"])
    tokenizer.add_tokens(["<2en>", "<2de>"])
    config = replace(CONFIG, source_lang="en", target_lang="German", max_length=40)
    (ids,) = TASK.tokenize({"source": ["a man"]}, tokenizer, config)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[0] == "<2de>"
    with pytest.raises(UserError, match="target_lang=French is not a language that"):
        languages.set_direction(tokenizer, replace(config, target_lang="French"))


def test_a_prefix_is_not_truncated(tokenizers):
    config = replace(CONFIG, source_lang="en", target_lang="de", truncation="tail")
    with pytest.raises(UserError, match="truncation=tail would cut 'translate English to German:'"):
        TASK.tokenize({"source": ["a man"]}, tokenizers["t5"], config)


def test_a_model_with_the_language_after_the_translation_is_refused(tokenizers):
    with pytest.raises(UserError, match="has the language at the end of a translation"):
        languages.set_direction(tokenizers["mbart25"], replace(CONFIG, source_lang="en", target_lang="de"))


def test_no_layer_is_dropped_in_training(tmp_path):
    model = base_models.build_base(TASK, find_model(str(make_model(tmp_path / "m2m", "m2m_100"))), [], CONFIG)
    assert model.config.encoder_layerdrop == model.config.decoder_layerdrop == 0


@pytest.mark.parametrize("kind", FORMATS)
def test_a_language_that_the_model_lacks_is_refused_with_those_it_has(kind, tokenizers):
    with pytest.raises(UserError, match=r"target_lang=Klingon is not a language of .*de.*fr"):
        languages.set_direction(tokenizers[kind], replace(CONFIG, source_lang="en", target_lang="Klingon"))


# --- data formats and bad input ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parallel(tmp_path_factory):
    """Return a folder with the same pairs and splits in all formats that can be read."""
    folder = tmp_path_factory.mktemp("parallel")
    rows = make_pairs(90).rename(columns={"low": "en", "high": "de"})
    parts = {"train": rows[:60], "validation": rows[60:75], "test": rows[75:]}
    for kind in ("csv", "jsonl", "parquet", "nested", "lines", "packed"):
        (folder / kind).mkdir()
    for name, part in parts.items():
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


@pytest.mark.parametrize("data_format", ["csv", "jsonl", "parquet", "nested", "lines", "packed"])
def test_all_formats_give_the_same_pairs(data_format, parallel):
    config = replace(CONFIG, source_column="en", target_column="de")
    expected, data = (splits.load_data(TASK, replace(config, dataset_name=str(parallel / name))) for name in ("csv", data_format))
    assert data.sha256 == expected.sha256 and (data.config.source_lang, data.config.target_lang) == ("en", "de")
    assert data.validation_split == "official validation" and data.test.columns() == expected.test.columns()


def test_files_beside_two_parallel_files_are_not_opened(tmp_path):
    for language in ("en", "de"):
        (tmp_path / f"train.{language}").write_text("1\n2\n")
    (tmp_path / "train.fr").mkdir()
    with zipfile.ZipFile(tmp_path / "others.zip", "w") as others:
        others.writestr("a", "")
        others.writestr("b", "")
    assert reading.read(tmp_path / "train.en", TASK.readers, "", cache=tmp_path).files == {"train": ["train.de", "train.en"]}


def test_either_of_two_parallel_files_names_the_data_set(parallel):
    config = replace(CONFIG, source_lang="English", source_column="en", target_column="de")
    data = splits.load_data(TASK, replace(config, dataset_name=str(parallel / "lines" / "train.en")))
    assert len(data.train) + len(data.validation) + len(data.test) == 60 and data.config.source_lang == "English"


def test_a_line_break_of_html_is_part_of_a_translation(tmp_path):
    pairs = make_pairs(60).assign(high=lambda pairs: pairs.high + "<br/>end")
    pairs.to_csv(tmp_path / "pairs.csv", index=False)
    config = replace(CONFIG, dataset_name=str(tmp_path / "pairs.csv"), source_column="low", target_column="high")
    data = splits.load_data(TASK, config)
    assert all(text.endswith("<br/>end") for text in references(data.test))


def test_languages_find_their_columns(parallel):
    data = splits.load_data(TASK, replace(CONFIG, dataset_name=str(parallel / "nested"), source_lang="de", target_lang="en"))
    assert (data.config.source_column, data.config.target_column) == ("translation.de", "translation.en")


def test_names_of_columns_that_are_no_languages_or_are_those_of_the_other_side_are_not_taken_for_languages(tmp_path):
    def settle(source: str, target: str, **settings) -> tuple[str | None, str | None]:
        settled = TASK.settle(Dataset.from_dict({source: [], target: []}), replace(CONFIG, **settings))[1]
        return settled.source_lang, settled.target_lang

    assert settle("src", "tgt") == (None, None), "T5 would read: translate Logudorese Sardinian to Central Tagbanwa"
    columns = dict(source_column="de", target_column="en")
    assert settle("en", "de", **columns) == ("de", "en") and settle("en", "de", **columns, source_lang="German") == ("German", "en")
    with pytest.raises(
        UserError, match="source_lang=English is the language of target_column=en: swap source_lang and target_lang"
    ):
        settle("en", "de", **columns, source_lang="English", target_lang="de")


def rows_with(**changed) -> pd.DataFrame:
    """Return 100 pairs; `r3=(source, target)` changes row 3, and a source of None keeps it."""
    rows = make_pairs(100).rename(columns={"low": "source", "high": "target"})
    for position, (source, target) in changed.items():
        rows.loc[int(position[1:])] = (source or rows.source[int(position[1:])], target)
    return rows


def loaded(tmp_path, train, **settings):
    train.to_csv(tmp_path / "pairs.csv", index=False)
    return splits.load_data(TASK, replace(CONFIG, dataset_name=str(tmp_path / "pairs.csv"), **settings))


def numbers_of(data) -> set[int]:
    return {int(row) for split in (data.train, data.validation, data.test) for row in split.rows}


def test_doubtful_pairs_are_counted_and_left_out_only_on_request(tmp_path):
    rows = rows_with(r3=("21 22 23", "1 2 3"), r5=("1 2", "21 22 " * 40), r7=("8 9 8", "8 9 8"))
    kept, skipped = (loaded(tmp_path, rows, on_bad_rows=choice) for choice in ("error", "skip"))
    assert numbers_of(kept) == {*range(100)}
    remarks = "\n".join(kept.remarks)
    assert "1 of 100 pairs of split train seem to have swapped sides (row 3)" in remarks and "left out" not in remarks
    assert "very different lengths (row 5)" in remarks and "equal texts on both sides (row 7)" in remarks
    assert numbers_of(skipped) == {*range(100)} - {3, 5}, "equal texts may be right; numbers are those of the file"
    assert ["left out" in remark for remark in skipped.remarks] == [False, True, True]
    numbered = {int(row): text for row, text in zip(skipped.train.rows, skipped.train.columns()["source"], strict=True)}
    assert all(rows.source[row] == text for row, text in numbered.items())


def test_a_number_that_is_read_as_a_text_is_named(tmp_path):
    rows = rows_with().astype(object)
    rows.loc[3, "source"] = 5
    rows.to_json(tmp_path / "pairs.jsonl", orient="records", lines=True)
    data = splits.load_data(TASK, replace(CONFIG, dataset_name=str(tmp_path / "pairs.jsonl")))
    assert any("1 numbers or truth values are read as texts, such as 5 (row 3)" in remark for remark in data.remarks)


def test_a_split_without_a_single_good_pair_is_refused(tmp_path):
    rows_with()[:60].to_csv(tmp_path / "train.csv", index=False)
    rows_with()[60:].assign(target="21 22 " * 40).to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(UserError, match="split test: all pairs have sides of very different lengths: check source and target"):
        splits.load_data(TASK, replace(CONFIG, dataset_name=str(tmp_path), on_bad_rows="skip"))


def test_empty_sides_are_refused_with_their_rows_or_left_out(tmp_path):
    rows = rows_with(r4=(None, ""), r8=(" ", "21"))
    with pytest.raises(UserError, match=r"2 of 100 rows .* with an empty text \(row 4, 8\).*on_bad_rows"):
        loaded(tmp_path, rows)
    assert "left out" in loaded(tmp_path, rows, on_bad_rows="skip").remarks[0]


def test_equal_sources_are_never_in_two_splits(tmp_path):
    rows = pd.concat([rows_with(), rows_with().assign(target="27 26")])
    data = loaded(tmp_path, rows)
    held_out = {*data.test.columns()["source"], *data.validation.columns()["source"]}
    assert len(held_out) > 20 and not held_out & {*data.train.columns()["source"]}


def test_columns_that_are_swapped_in_one_split_are_refused(tmp_path):
    rows = rows_with()
    rows[:60].to_csv(tmp_path / "train.csv", index=False)
    rows[60:].rename(columns={"source": "target", "target": "source"}).to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(UserError, match="split test: source and target are swapped"):
        splits.load_data(TASK, replace(CONFIG, dataset_name=str(tmp_path)))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--target_column", "low"], "source_column and target_column are both 'low'"),
        (["--target_column", "other"], "target_column=other is not a column; the columns are low, high"),
        (["--text_column", "low"], "text_column=low is not for translation"),
        (["--method", "head"], "method=head is not for translation"),
        (
            ["--metric_for_best_model", "f1"],
            "metric_for_best_model=f1 is not known for translation: set it to one of bleu, chrf, ter, loss",
        ),
        (["--context", "neighbours"], "context=neighbours is not for translation"),
        (["--augmentation", "crop"], "augmentation=crop is not for translation"),
        (["--task", "text-classification"], "source_column=low is not for single_label_classification"),
        (["--num_beams", 0], "num_beams=0 is out of range"),
        (["--truncation", "error", "--max_length", 8], "row 0 of split train: a text of 12 tokens is longer than max_length=8"),
        (["--truncation", "head+tail"], "truncation=head+tail would leave out the middle of a sentence"),
    ],
)
def test_bad_settings_are_refused(flags, message, marian, pairs, call):
    rows = pd.read_csv(pairs)
    rows.loc[0, "low"] = "1 2 3 4 5 6 7 1 2 3 4"
    rows.to_csv("pairs.csv", index=False)
    result = call("fine_tune.py", *FLAGS, "--model_name", marian, "--dataset_name", "pairs.csv", *flags)
    assert result.code == 2 and message in result.err and "Traceback" not in result.err


def test_truncated_texts_are_counted(marian, pairs, call):
    rows = pd.read_csv(pairs)
    rows["low"] += " 1 2 3 4 5 6 7"
    rows.to_csv("pairs.csv", index=False)
    paths = ["--model_name", marian, "--dataset_name", "pairs.csv", "--run_name", "long"]
    result = call("fine_tune.py", *FLAGS, *paths, "--max_length", 8, "--num_train_epochs", 1)
    assert result.code == 0 and "280 training texts (100.0%) to max_length=8" in result.out, result.out
    evaluated = call("evaluate.py", "outputs/long")
    assert evaluated.code == 0 and "longer sources are cut to 8 tokens (truncation=head)" in evaluated.out
    assert "In 80 pairs a side has more than 8 tokens" in Path("outputs/long/report.html").read_text(encoding="utf-8")


def test_the_remark_names_the_search_and_truncation_of_the_run():
    config = dict(num_beams=1, truncation="error", max_length=30)
    metrics = {"run": {"config": config}, "greedy": {"bleu": 20.0}, "bleu_signature": "nrefs:1"}
    remark = TASK.remark(metrics)
    assert "greedy search, into at most 30 tokens. Compared" in remark and "beam" not in remark
    metrics["run"]["config"] = config | dict(num_beams=4, truncation="tail")
    remark = TASK.remark(metrics)
    assert "beam search with 4 beams" in remark and "(truncation=tail)" in remark and "BLEU of greedy search: 20.00" in remark


def test_scores_use_the_part_of_a_long_text_that_is_translated(marian):
    text, tail = (" ".join(map(str, range(first, 21))) for first in (1, 6))
    predictor = predictor_of(marian, replace(CONFIG, truncation="tail"))
    first, second = (TASK.answers(predictor, {"source": [source]}) for source in (text, tail))
    assert first == second


def test_a_script_that_the_tokenizer_does_not_know_is_refused(marian, tmp_path, call):
    rows = make_pairs(60)
    rows["low"] = [f"漢 字 {text}" for text in rows.low.str.replace(r"\d", "語", regex=True)]
    rows["low"] += [" 文" * i for i in range(60)]
    rows.to_csv("pairs.csv", index=False)
    result = call("fine_tune.py", *FLAGS, "--model_name", marian, "--dataset_name", "pairs.csv")
    assert result.code == 2 and "does not know" in result.err and "script" in result.err


def test_files_that_are_not_parallel_are_refused(tmp_path):
    (tmp_path / "a.en").write_text("1\n2\n3\n")
    (tmp_path / "a.de").write_text("21\n22\n")
    with pytest.raises(UserError, match="a.de has 2.*a.en has 3"):
        splits.load_data(TASK, replace(CONFIG, dataset_name=str(tmp_path)))
    (tmp_path / "a.de").unlink()
    with pytest.raises(UserError, match="en"):
        splits.load_data(TASK, replace(CONFIG, dataset_name=str(tmp_path)))


def test_another_target_language_tokenizes_again(tokenizers, parallel, tmp_path):
    tokenizers["mbart50"].save_pretrained(tmp_path / "mbart50")
    config = replace(CONFIG, dataset_name=str(parallel / "csv"), source_column="en", target_column="de", max_length=40)
    data, inputs = splits.load_data(TASK, config), []
    for lang in ("de", "fr"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "mbart50")
        inputs.append(tokenizing.encode(TASK, data.test, tokenizer, replace(data.config, target_lang=lang)).inputs)
    german, french = inputs
    assert german["input_ids"] == french["input_ids"] and german["targets"][0][1:] == french["targets"][0][1:]
    assert tokenizer.convert_ids_to_tokens([part["targets"][0][0] for part in inputs]) == ["de_DE", "fr_XX"]
