"""Translation: an encoder reads a text in one language, a decoder writes it in another.

Trained on pairs of texts to predict the next token of the translation. Validation's BLEU is that of greedy search, in which each
token is the likeliest; evaluate.py and predict.py use beam search.
"""

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, Features, List, Value
from markupsafe import Markup
from peft import PeftModel, TaskType
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest
from torch.nn.functional import log_softmax, pad
from tqdm import tqdm
from transformers import AutoModelForSeq2SeqLM, EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from config import Config
from finetuning import beam_search, fast, training
from finetuning.data import FIRST, TEXT_COLUMNS, Split, find_column, refuse, renamed
from finetuning.disk import map_once, read_columns
from finetuning.errors import UserError
from finetuning.files import LANGUAGE_ENDINGS, parallel
from finetuning.languages import direction, language
from finetuning.metrics import mean_of_all
from finetuning.page import MISTAKES, Mistake, Section, write_csv
from finetuning.tasks.causal_lm import padded, scoring
from finetuning.tasks.text_classification import check_texts, clean
from finetuning.tokenizing import Tokens, special_tokens, truncate

if TYPE_CHECKING:
    from finetuning.run_folder import Run

NAME = PIPELINE = "translation"

# --- rows ----------------------------------------------------------------------------------------------------------------

READERS = dict.fromkeys(LANGUAGE_ENDINGS, ("text", parallel))
INPUTS = (str,)
EMPTY = {"translation": "", "score": 0.0}
SOURCE_COLUMNS = ("source", "src", "source_text", "source_sentence", "input")
TARGET_COLUMNS = ("target", "tgt", "target_text", "target_sentence", "translation", "output")


def find_inputs(columns: list[str], config: Config, text_column: str | None) -> dict[str, str]:
    usual = (config.source_column, config.source_column.rpartition(".")[2], *SOURCE_COLUMNS, *TEXT_COLUMNS)
    return {"source": find_column("text_column", text_column, usual, columns)}


def find_columns(columns: list[str], config: Config) -> dict[str, str]:
    """By their names, or of columns with a language each by the languages."""
    found = {}
    for side, usual in (("source", SOURCE_COLUMNS), ("target", TARGET_COLUMNS)):
        asked, lang = getattr(config, f"{side}_column"), getattr(config, f"{side}_lang")
        named = [column for column in columns if (asked or lang) in (column, column.rpartition(".")[2])]
        found[side] = find_column(f"{side}_column", named[0] if len(named) == 1 else asked, usual, columns)
    if found["source"] == found["target"]:
        raise UserError(
            f"source_column and target_column are both {found['source']!r}: name two, out of {', '.join(columns)}, the second with the "
            "translations"
        )
    return found


def settle(train: Dataset, config: Config) -> Config:
    """`config` with the columns that were found, the languages that they are named after, and the side that is cut."""
    labels = ("text_column", "text_pair_column", "label_column", "problem_type", "class_weights")
    refuse(config, NAME, *labels, "augmentation", "padding")
    if config.method == "head":
        raise UserError(f"method=head is not for {NAME}, which has no new head to train alone: set it to lora or full")
    found = {f"{side}_column": column for side, column in find_columns(train.column_names, config).items()}
    for side in ("source", "target"):
        name = found[f"{side}_column"].rpartition(".")[2]
        found[f"{side}_lang"] = getattr(config, f"{side}_lang") or (name if language(name) else None)
    return replace(config, **found, truncation="head" if config.truncation == Config.truncation else config.truncation)


def read_rows(
    raw: dict[str, Dataset], columns: dict[str, str], config: Config
) -> tuple[dict[str, Dataset], dict[str, np.ndarray], list[str], list[str]]:
    """Pairs as they are, without those that can't be right where bad rows are left out; of each nothing is held.

    Raises `UserError` where most of a split's pairs are the wrong way round.
    """
    check_texts(raw, columns)
    found, remarks = renamed(raw, columns), []
    words = words_of_one_side(found["train"])
    for split, rows in found.items():
        kinds = read_columns(map_once(rows, kind_of_pairs(words), KINDS, [words]), "kind")["kind"].to_numpy()
        for kind, what in enumerate(DOUBTFUL, 1):
            if count := int((kinds == kind).sum()):
                first = ", ".join(map(str, np.flatnonzero(kinds == kind)[:FIRST])) + (", ..." if count > FIRST else "")
                left_out = ": left out" if config.on_bad_rows == "skip" and kind != SAME else ""
                remarks.append(f"{count:,} of {len(rows):,} pairs of split {split} {what} (row {first}){left_out}")
        if split != "train" and (kinds == SWAPPED).mean() > 0.5:
            raise UserError(
                f"split {split}: {columns['source']} and {columns['target']} have changed places, compared with train: mend it"
            )
        if config.on_bad_rows == "skip":
            found[split] = rows.select(np.flatnonzero((kinds == 0) | (kinds == SAME)))
    return found, {split: np.zeros(len(rows), dtype=np.int64) for split, rows in found.items()}, [], remarks


DOUBTFUL = ("have equal texts on both sides", "are of absurdly different lengths", "have changed sides, it seems")
SAME, UNLIKE, SWAPPED = 1, 2, 3
KINDS = Features({"kind": Value("int8")})
RATIO, SHORT = 9, 50  # of the characters of two sides; a longer one of fewer may be any number of times as long
LOOKED_AT = 20_000  # pairs of train, for the words of each side


def words_of_one_side(train: Dataset) -> tuple[list[str], list[str]]:
    """Words that train has on the one side and hardly on the other, for each side."""
    some = train[: min(len(train), LOOKED_AT)]
    source, target = (Counter(word for text in clean(some[side]) for word in text.split()) for side in ("source", "target"))

    def alone(here: Counter, there: Counter) -> list[str]:
        return sorted(word for word, count in here.items() if count > 2 and count > 10 * there[word])

    return alone(source, target), alone(target, source)


def kind_of_pairs(words: tuple[list[str], list[str]]) -> Callable[[dict, list[int]], dict]:
    """Rows -> of each pair 0, or the number of what is doubtful about it in DOUBTFUL."""
    of_source, of_target = map(set, words)

    def leans(text: str) -> int:
        found = text.split()
        return sum(word in of_source for word in found) - sum(word in of_target for word in found)

    def kind(source: str, target: str) -> int:
        lengths = sorted((len(source), len(target)))
        if not source.strip() or not target.strip():
            return 0  # empty, which is found elsewhere
        if source.strip() == target.strip():
            return SAME
        if lengths[1] > max(SHORT, RATIO * lengths[0]):
            return UNLIKE
        return SWAPPED if leans(source) < 0 < leans(target) else 0

    def kinds(batch: dict[str, list], rows: list[int]) -> dict[str, list]:
        return {"kind": [kind(*pair) for pair in zip(clean(batch["source"]), clean(batch["target"]), strict=True)]}

    return kinds


def strata(labels: np.ndarray) -> np.ndarray:
    return labels


def contents(batch: dict[str, list], labels: np.ndarray) -> tuple[list[str], Sequence]:
    """Equal sources stay on one side of a split; a pair with an empty side counts as empty."""
    source, target = clean(batch["source"]), clean(batch["target"])
    return [one if other.strip() else "" for one, other in zip(source, target, strict=True)], target


# --- tokens and model ----------------------------------------------------------------------------------------------------


def features(tokenizer: PreTrainedTokenizerBase, config: Config) -> Features:
    """Token ids of the text, and of its translation; the length is that of the longer one."""
    ids = {"input_ids": List(Value("int32")), "targets": List(Value("int32"))}
    return Features({**ids, "rows": List(Value("int64")), "length": Value("int32")})


def tokenize(batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, config: Config) -> dict:
    """Raises `UserError` for texts in signs that the tokenizer does not know."""
    prefix = direction(tokenizer, config)["prefix"] or ""
    plain = dict(return_attention_mask=False, return_token_type_ids=False, padding=False, truncation=False, verbose=False)
    sides = {"input_ids": tokenizer([prefix + text for text in clean(batch["source"])], **plain)["input_ids"]}
    if "target" in batch:
        sides["targets"] = tokenizer(text_target=clean(batch["target"]), **plain)["input_ids"]
    for side, rows in sides.items():
        ids = np.concatenate([*rows, []])
        if len(ids) and np.mean(ids == tokenizer.unk_token_id) > UNKNOWN:
            column = config.source_column if side == "input_ids" else config.target_column
            raise UserError(
                f"{column}: {np.mean(ids == tokenizer.unk_token_id):.0%} of its tokens are unknown to {config.model_name}, whose tokenizer does "
                "not know its script: choose another model_name"
            )
    around = special_tokens(tokenizer)
    cut = {side: [truncate(ids, config.max_length, config.truncation, *around) for ids in rows] for side, rows in sides.items()}
    lengths = [max(map(len, both)) for both in zip(*sides.values(), strict=True)]
    return cut | {"length": lengths, "rows": [[row] for row in range(len(lengths))]}


UNKNOWN = 0.5  # share of tokens, in a batch of texts
TOKENIZER: dict = {}
MODEL = AutoModelForSeq2SeqLM
PEFT_TYPE = TaskType.SEQ_2_SEQ_LM


def model_settings(label_names: list[str]) -> dict:
    return {}


def adapt(model: torch.nn.Module) -> torch.nn.Module:
    """Let the model, given a batch with `targets` (rows, tokens), -100 where there is none, answer in place of its logits with
    (rows, 3): the sums of the targets' log-likelihoods and of the mean log-likelihood of all words in their places, and how many
    they are."""
    start, padding = model.config.decoder_start_token_id, model.config.pad_token_id

    def of_words(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        likely = log_softmax(logits, dim=-1)
        return torch.stack([likely.gather(1, targets[:, None])[:, 0], likely.mean(dim=-1)], dim=1)

    def shifted(targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the decoder has read when it predicts each target."""
        return {"decoder_input_ids": pad(targets.where(targets >= 0, padding)[:, :-1], (1, 0), value=start)}

    return scoring(model, model.get_decoder(), of_words, shifted)


def collator(tokenizer: PreTrainedTokenizerBase, config: Config) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
    """`input_ids` and `attention_mask` (rows, tokens); `targets` (rows, tokens), which the Trainer counts as `labels`."""

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        targets = padded([row["targets"] for row in rows], -100)["input_ids"]
        return padded([row["input_ids"] for row in rows], tokenizer.pad_token_id) | {"targets": targets, "labels": targets}

    return collate


MIXED = True  # after steps of short texts alone a model has forgotten how long ones go on


def change(tokenizer: PreTrainedTokenizerBase, config: Config) -> None:
    return None


def loss(held: np.ndarray, n_labels: int, config: Config) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(what `adapt` gives, labels) -> the sum of the losses of all tokens, smoothed as in arXiv 1512.00567."""
    smooth = config.label_smoothing_factor
    return lambda scores, labels: -((1 - smooth) * scores[:, 0] + smooth * scores[:, 1]).sum()


FORMATS = ("merged", "ctranslate2", "ctranslate2-int8")


class CTranslate2(torch.nn.Module):
    """CTranslate2 in the place of a model: it translates and scores as `predict` asks."""

    device = torch.device("cpu")

    def __init__(self, merged: Path, folder: Path, tokenizer: PreTrainedTokenizerBase, quantization: str = "float32") -> None:
        import ctranslate2

        super().__init__()
        try:
            ctranslate2.converters.TransformersConverter(str(merged)).convert(str(folder), quantization=quantization)
        except (AttributeError, ValueError) as error:
            raise UserError(f"CTranslate2 does not know this kind of model ({error}): leave it out of --formats") from error
        self.tokenizer = tokenizer
        self.translator = ctranslate2.Translator(str(folder), compute_type=quantization, intra_threads=torch.get_num_threads())

    def tokens(self, rows: torch.Tensor, there: torch.Tensor) -> list[list[str]]:
        return [self.tokenizer.convert_ids_to_tokens(row[here].tolist()) for row, here in zip(rows, there, strict=True)]

    def generate(self, input_ids, attention_mask, num_beams, max_new_tokens, forced_bos_token_id=None, **_) -> list[list[int]]:
        first = forced_bos_token_id is not None and [self.tokenizer.convert_ids_to_tokens([forced_bos_token_id])] * len(input_ids)
        found = self.translator.translate_batch(
            self.tokens(input_ids, attention_mask.bool()),
            target_prefix=first or None,
            beam_size=num_beams,
            max_decoding_length=max_new_tokens,
        )
        return [self.tokenizer.convert_tokens_to_ids(one.hypotheses[0]) for one in found]

    def forward(self, input_ids, attention_mask, targets, labels=None) -> dict[str, torch.Tensor]:
        there = targets >= 0
        without_end = there & (targets != self.tokenizer.eos_token_id)
        found = self.translator.score_batch(self.tokens(input_ids, attention_mask.bool()), self.tokens(targets, without_end))
        sums = torch.tensor([[sum(one.log_probs), 0.0] for one in found])
        return {"logits": torch.cat([sums, there.sum(dim=1, keepdim=True)], dim=1)}


EXPORTS = {"ctranslate2": CTranslate2, "ctranslate2-int8": functools.partial(CTranslate2, quantization="int8")}

# --- predictions and what is measured ------------------------------------------------------------------------------------

METRICS = ("bleu", "loss")
GENERATED = 256  # tokens in a batch for each row of eval_batch_size, shared out among the beams


@dataclass(frozen=True)
class Translations:
    """Of rows in their order; as numbers, by which exports are compared, their scores."""

    scores: np.ndarray  # (rows, 2): mean log-likelihood of the reference's tokens, and how many they are
    texts: list[str]  # by beam search
    greedy: list[str]
    told: dict  # as `direction` has it

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.scores)


def predict(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, tokens: Tokens, config: Config, show_progress: bool = True
) -> Translations:
    sums = np.empty((len(tokens), 3))
    for rows, batches in training.predict(model, tokenizer, collator(tokenizer, config), tokens, config, show_progress):
        sums[rows] = np.concatenate(batches)
    greedy = translate(model, tokenizer, tokens, config, 1, show_progress)
    texts = greedy if config.num_beams == 1 else translate(model, tokenizer, tokens, config, config.num_beams, show_progress)
    return Translations(means(sums), texts, greedy, direction(tokenizer, config))


def means(sums: np.ndarray) -> np.ndarray:
    """What `adapt` gives (rows, 3) -> mean log-likelihood and number of tokens (rows, 2)."""
    return np.stack([sums[:, 0] / sums[:, 2], sums[:, 2]], axis=1).astype(np.float64)


def translate(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, tokens: Tokens, config: Config, num_beams: int, show_progress: bool
) -> list[str]:
    """Translations in the order of the rows. Those of like length are made together, and each process makes a share."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    first, state, found = direction(tokenizer, config)["first"], PartialState(), []
    write = functools.partial(base.generate, do_sample=False, use_cache=True)
    if isinstance(base, PreTrainedModel) and beam_search.honours(base.generation_config):
        write = functools.partial(beam_search.search, base)
    order, room = np.argsort(-tokens.lengths, kind="stable"), GENERATED * fast.rows_to_predict(config)
    batches = [rows for rows in by_tokens(order, np.minimum(tokens.lengths, config.max_length), room // num_beams)]
    bar = tqdm(total=len(order), unit=" rows", disable=None if show_progress and state.is_main_process else True)
    for rows in batches[state.process_index :: state.num_processes]:
        batch = padded([row["input_ids"] for row in tokens.__getitems__(rows)], tokenizer.pad_token_id)
        with torch.no_grad(), fast.autocast(config):
            ids = write(
                **{name: tensor.to(base.device) for name, tensor in batch.items()},
                num_beams=num_beams,
                max_new_tokens=config.max_length,
                forced_bos_token_id=first,
            )
        found += zip(rows.tolist(), tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True)
        bar.update(len(rows))
    bar.close()
    fast.give_back_freed_memory()
    return [text.strip() for _, text in sorted(gather_object(found) if state.num_processes > 1 else found)]


def by_tokens(order: np.ndarray, lengths: np.ndarray, room: int) -> Iterator[np.ndarray]:
    """Rows, longest first, as batches of at most `room` tokens, padding included, or of one row."""
    start = 0
    while start < len(order):
        end = start + max(1, room // int(lengths[order[start]]))
        yield order[start:end]
        start = end


def validation_metrics(found: EvalPrediction, tokens: Tokens, label_names: list[str]) -> dict[str, float]:
    return {"loss": loss_of(means(found.predictions))["loss"]}


def validate(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, tokens: Tokens, validation: Split, config: Config
) -> dict[str, float]:
    return {"bleu": BLEU().corpus_score(translate(model, tokenizer, tokens, config, 1, False), [references(validation)]).score}


def references(split: Split) -> list[str]:
    return [text.strip() for text in clean(split.columns()["target"])]


def loss_of(scores: np.ndarray) -> dict:
    """In nats a token, with its interval over rows."""
    mean, low, high = mean_of_all(-scores[:, 0], scores[:, 1])
    return {"loss": mean, "loss_ci95": [low, high]}


def corpus_score(metric: BLEU | CHRF | TER, texts: list[str], references: list[str]) -> dict:
    """A metric of sacreBLEU on 0 to 100 with its 95 % interval of 1,000 bootstrap samples of the rows, and its signature."""
    name, found = metric.__class__.__name__.lower(), metric.corpus_score(texts, [references], n_bootstrap=SAMPLES)
    said = json.loads(found.format(width=4, signature=metric.get_signature().format(), is_json=True))
    mean, half = said.get("confidence_mean", 0.0), said.get("confidence_var", 0.0)  # of zero it has none
    return {name: found.score, f"{name}_ci95": [mean - half, mean + half], f"{name}_signature": said["signature"]}


SAMPLES = 1000


def calibrate(found: Translations, validation: Split) -> dict:
    return {"direction": found.told}


def decide(found: Translations, calibrated: dict) -> list[str]:
    return found.texts


def interval(found: Translations, split: Split) -> list[float]:
    return corpus_score(BLEU(), found.greedy, references(split))["bleu_ci95"]


WORDS = (0, 10, 20, 30, 50)


def measure(found: Translations, test: Split, lengths: np.ndarray, label_names: list[str], calibrated: dict) -> dict:
    there, words = references(test), np.array([len(text.split()) for text in clean(test.columns()["source"])])
    figures = {"n": len(there)}
    for metric in (BLEU(), CHRF(), TER()):
        figures |= corpus_score(metric, found.texts, there)
    by_length = []
    for low, high in zip(WORDS, (*WORDS[1:], None), strict=True):
        here = np.flatnonzero((words > low) & (words <= (high or np.inf)))
        if len(here):
            score = BLEU().corpus_score([found.texts[i] for i in here], [[there[i] for i in here]]).score
            by_length.append({"above": low, "up_to": high, "n": len(here), "bleu": score})
    return (
        figures
        | loss_of(found.scores)
        | {
            "tokens": int(found.scores[:, 1].sum()),
            "greedy": corpus_score(BLEU(), found.greedy, there),
            "by_length": by_length,
        }
    )


# --- what evaluate.py leaves and says ------------------------------------------------------------------------------------


def write(folder: Path, config: Config, metrics: dict, test: Split, found: Translations, lengths: np.ndarray) -> list[Section]:
    """predictions.parquet, errors.csv and the texts, a line each, into `folder`; what stands on the page.

    predictions.parquet has a row for each pair: `row` (number in the split), `reference`, `translation`, its `chrf` and the `loss` of
    the reference. errors.csv has the same with the source, the worst by chrF first.
    """
    there, sentence = references(test), CHRF(eps_smoothing=True)
    chrf = np.array([sentence.sentence_score(*pair).score for pair in zip(found.texts, ([text] for text in there), strict=True)])
    columns = {"row": test.rows, "reference": there, "translation": found.texts, "chrf": chrf, "loss": -found.scores[:, 0]}
    table = pyarrow.table(columns)
    pyarrow.parquet.write_table(table, folder / "predictions.parquet")
    for name, texts in (("sources", clean(test.columns()["source"])), ("references", there), ("translations", found.texts)):
        (folder / f"{name}.txt").write_text("".join(f"{' '.join(text.split())}\n" for text in texts), encoding="utf-8")
    order = np.argsort(chrf, kind="stable")

    def rows_at(positions: np.ndarray) -> pd.DataFrame:
        return table.take(positions).to_pandas().assign(source=clean(test.select(positions).columns()["source"]))

    def shown(positions: np.ndarray) -> list[Mistake]:
        both = Markup('<span class="sides"><span><b>the model</b> {}</span><span><b>the reference</b> {}</span></span>')
        return [
            Mistake(None, f"chrF {one.chrf:.0f}, row {one.row}: {one.source}", both.format(one.translation, one.reference))
            for one in rows_at(positions).itertuples()
        ]

    write_csv(folder / "errors.csv", order, rows_at)
    sample = np.sort(np.random.default_rng(0).permutation(len(order))[:MISTAKES])
    figures = [
        (
            name,
            f"{metrics[key]:.2f}",
            f"95 % interval {metrics[f'{key}_ci95'][0]:.2f} to {metrics[f'{key}_ci95'][1]:.2f}; {metrics[f'{key}_signature']}",
        )
        for name, key in NAMES.items()
    ]
    figures += [
        ("BLEU, greedy", f"{metrics['greedy']['bleu']:.2f}", "each token the likeliest, without beam search"),
        ("loss", f"{metrics['loss']:.4f}", f"nats a token of the references; {metrics['tokens']:,} tokens"),
        ("validation BLEU", f"{metrics['validation']['bleu']:.2f}", f"{metrics['validation']['n']:,} pairs, greedy"),
    ]
    by_length = [
        (
            f"{one['above'] + 1} to {one['up_to']} words" if one["up_to"] else f"{one['above'] + 1} words or more",
            f"{one['bleu']:.2f}",
            f"{one['n']:,} pairs",
        )
        for one in metrics["by_length"]
    ]
    cut = f" {int((lengths > config.max_length).sum()):,} pairs were longer than {config.max_length} tokens and cut."
    return [
        Section(text=how_translated(metrics) + cut, figures=tuple(figures)),
        Section("By length of the source", "BLEU.", figures=tuple(by_length)),
        Section("A sample", "Opened: the translation beside the reference.", mistakes=(("", shown(sample)),)),
        Section(
            "The worst",
            f"By chrF of the sentence; all {len(order):,} are in errors.csv.",
            mistakes=(("", shown(order[:MISTAKES])),),
        ),
    ]


NAMES = {"BLEU": "bleu", "chrF": "chrf", "TER": "ter"}


def headline(metrics: dict) -> tuple[str, str]:
    low, high = metrics["bleu_ci95"]
    return f"BLEU {metrics['bleu']:.2f}", f"95 % interval {low:.2f} to {high:.2f}"


def how_translated(metrics: dict) -> str:
    beams = metrics["run"]["config"]["num_beams"]
    how = f"by beam search, {beams} at a time" if beams > 1 else "by greedy search"
    return f"Translated {how}, and compared as it stands, with capitals, against one reference."


def remark(metrics: dict) -> str:
    return f"{how_translated(metrics)} sacreBLEU's signature: {metrics['bleu_signature']}."


def show_metrics(metrics: dict) -> None:
    for name, key in NAMES.items():
        low, high = metrics[f"{key}_ci95"]
        print(f"{name:<10} {metrics[key]:.2f}   95 % interval {low:.2f} to {high:.2f}   {metrics[f'{key}_signature']}")
    print(f"greedy     {metrics['greedy']['bleu']:.2f}   BLEU without beam search")
    print(f"loss       {metrics['loss']:.4f}   nats a token of the references")


COMPARED = ["row", "reference", "translation", "chrf"]


def compare(a: pd.DataFrame, b: pd.DataFrame, test: Split) -> tuple[dict, np.ndarray, Callable[[np.ndarray], pd.DataFrame]]:
    """sacreBLEU's paired bootstrap test of a against b; the rows that differ, by how far their chrF does."""
    both = a.rename(columns={"translation": "translation_a", "chrf": "chrf_a"}).assign(translation_b=b.translation, chrf_b=b.chrf)
    differ = np.flatnonzero(both.translation_a != both.translation_b)
    order = differ[np.argsort(-(both.chrf_a - both.chrf_b).abs().to_numpy()[differ], kind="stable")]

    def rows_at(positions: np.ndarray) -> pd.DataFrame:
        return both.iloc[positions].assign(source=clean(test.select(positions).columns()["source"]))

    systems = [("b", b.translation.tolist()), ("a", a.translation.tolist())]  # the first is what the others are tested against
    tested = PairedTest(systems, {"BLEU": BLEU(), "chrF": CHRF()}, [a.reference.tolist()], test_type="bs", n_samples=SAMPLES)
    scores = list(tested()[1].values())[1:]  # behind the systems' names
    found = {name: {"b": b.score, "a": a.score, "p": a.p_value} for name, (b, a) in zip(("BLEU", "chrF"), scores, strict=True)}
    return found | {"n": len(both), "rows_differ": len(differ)}, order, rows_at


def show_comparison(found: dict, names: tuple[str, str]) -> None:
    for metric in ("BLEU", "chrF"):
        one = found[metric]
        for name, side in zip(names, "ab", strict=True):
            print(f"{one[side]:.2f}   {name}   {metric} on {found['n']:,} pairs")
        print(f"difference {one['a'] - one['b']:+.2f}, p = {one['p']:.3f} (sacreBLEU's paired bootstrap test)")


# --- use -----------------------------------------------------------------------------------------------------------------

OPTIONS = dict(num_beams=None)  # as the run has it


def answer(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, batch: dict[str, list], run: "Run", num_beams: int | None = None
) -> dict[str, list]:
    """The `translation` of each text, and its `score`: the mean log-likelihood of the translation's tokens."""
    if num_beams is not None and num_beams < 1:
        raise UserError(f"--num_beams {num_beams} is out of range: it must be at least 1")
    tokens = tokens_of(batch, tokenizer, run.config)
    texts = translate(model, tokenizer, tokens, run.config, num_beams or run.config.num_beams, show_progress=False)
    scored = tokens_of(batch | {"target": texts}, tokenizer, replace(run.config, truncation="head"))
    scores = np.empty((len(texts), 3))
    for rows, batches in training.predict(
        model, tokenizer, collator(tokenizer, run.config), scored, run.config, show_progress=False
    ):
        scores[rows] = np.concatenate(batches)
    return {"translation": texts, "score": means(scores)[:, 0].tolist()}


def tokens_of(batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, config: Config) -> Tokens:
    found = tokenize(batch, tokenizer, config)
    lengths, rows = np.array(found.pop("length")), np.concatenate(found.pop("rows"))
    return Tokens(Dataset.from_dict(found), lengths, rows=rows)


def as_json(inputs: dict[str, str], answered: dict) -> dict:
    return inputs | {"translation": answered["translation"], "score": round(answered["score"], 6)}


def as_line(inputs: dict[str, str], answered: dict, label_names: list[str]) -> str:
    return " ".join(answered["translation"].split())


def code(config: Config, load: str, calibrated: dict) -> str:
    told = calibrated["direction"]
    languages = f"tokenizer.src_lang, tokenizer.tgt_lang = {told['src_lang']!r}, {told['tgt_lang']!r}\n" if told["src_lang"] else ""
    text = f"{told['prefix']!r} + text" if told["prefix"] else "text"
    first = f"\n        forced_bos_token_id={told['first']}," if told["first"] is not None else ""
    return f"""import torch
{load}
{languages}

def translate(text):
    batch = tokenizer({text}, truncation=True, max_length={config.max_length}, return_tensors="pt")
    ids = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        num_beams={config.num_beams},
        do_sample=False,
        max_new_tokens={config.max_length},{first}
    )
    return tokenizer.decode(ids[0], skip_special_tokens=True).strip()


print(translate("A man is riding a horse."))
"""


def pipeline(config: Config) -> None:
    """transformers has none since its version 5."""


EXAMPLES = ["A man is riding a horse.", "Two children are playing in the snow."]


def demo_outputs() -> list:
    """What app.py shows of `demo`."""
    import gradio

    return [gradio.Textbox(label="Translation", lines=5)]


def demo(model: PeftModel, tokenizer: PreTrainedTokenizerBase, text: str, run: "Run") -> str:
    return answer(model, tokenizer, {"source": [text]}, run)["translation"][0]
