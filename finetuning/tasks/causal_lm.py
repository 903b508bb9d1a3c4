"""Language modelling from left to right: a GPT that goes on in the style of the texts it was fine-tuned on.

A row is a document. It begins and ends with the token for the end of a text, and is read in blocks of `max_length` tokens, none
of which crosses into another document; a block begins with the last token of the one before, so that each token of a
document is predicted once. Perplexity is the exponential of the mean loss of all of them.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.compute
import pyarrow.parquet
import torch
from datasets import Dataset, Features, List, Value
from markupsafe import Markup
from peft import PeftModel, TaskType
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, EvalPrediction, PreTrainedTokenizerBase, set_seed
from transformers.modeling_outputs import MaskedLMOutput

from config import Config
from finetuning import training
from finetuning.data import Split, find_column, refuse, renamed
from finetuning.errors import UserError
from finetuning.files import documents
from finetuning.labels import encode_labels
from finetuning.metrics import mean_of_all
from finetuning.page import MISTAKES, Mistake, Section, write_csv
from finetuning.tasks.text_classification import LABEL_COLUMNS, check_texts, clean, find_inputs
from finetuning.tokenizing import Tokens

if TYPE_CHECKING:
    from finetuning.run_folder import Run

NAME = "causal-lm"
PIPELINE = "text-generation"

# --- rows ----------------------------------------------------------------------------------------------------------------

READERS = {".txt": ("text", documents)}
INPUTS = (str,)


def find_columns(columns: list[str], config: Config) -> dict[str, str]:
    """Beside the text a label where there is one: so the rows held out are those that a classifier of the same data holds out."""
    found = find_inputs(columns, config, config.text_column)
    by_lower = {column.lower(): column for column in columns}
    label = config.label_column or next((by_lower[name] for name in LABEL_COLUMNS if name in by_lower), None)
    if label:
        found["label"] = find_column("label_column", label, (), columns)
    return found


def settle(train: Dataset, config: Config) -> Config:
    return settle_text(config)


def settle_text(config: Config) -> Config:
    """What both kinds of language model have no use for is refused."""
    labels = ("text_pair_column", "problem_type", "class_weights", "label_smoothing_factor")
    refuse(config, config.task, *labels, "truncation", "augmentation", "padding")
    if config.method == "head":
        raise UserError(f"method=head is not for {config.task}, which has no new head to train alone: set it to lora or full")
    return config


def read_rows(
    raw: dict[str, Dataset], columns: dict[str, str], config: Config
) -> tuple[dict[str, Dataset], dict[str, np.ndarray], list[str], list[str]]:
    """Rows as they are, without the empty ones; of each the label (rows,), or 0."""
    check_texts(raw, columns)
    found, remarks = renamed(raw, columns), []
    for split, rows in found.items():
        found[split] = rows.filter(lambda texts: [bool((text or "").strip()) for text in texts], input_columns="text", batched=True)
        if empty := len(rows) - len(found[split]):
            remarks.append(f"{empty:,} empty texts of split {split} left out")
        if not len(found[split]):
            raise UserError(f"text_column={columns['text']}: split {split} has no text in it; set text_column to the one that has")
    labels = {split: np.zeros(len(rows), dtype=np.int64) for split, rows in found.items()}
    if "label" in columns:
        with contextlib.suppress(UserError):  # for what no classifier could hold rows out by
            labels, _ = encode_labels(found, "label")
    return {split: rows.select_columns("text") for split, rows in found.items()}, labels, [], remarks


def strata(labels: np.ndarray) -> np.ndarray:
    return labels


def contents(batch: dict[str, list], labels: np.ndarray) -> tuple[list[str], Sequence]:
    return clean(batch["text"]), labels


# --- tokens and model ----------------------------------------------------------------------------------------------------


def features(tokenizer: PreTrainedTokenizerBase, config: Config) -> Features:
    """A block: its token ids, and the row it is of."""
    return Features({"input_ids": List(Value("int32")), "rows": List(Value("int64")), "length": Value("int32")})


def tokenize(batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, config: Config) -> dict:
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"task=causal-lm: the tokenizer of {config.model_name} has no token for the end of a text: set model_name to a decoder, "
            "as gpt2 is one, or task to masked-lm"
        )
    found = {"input_ids": [], "rows": [], "length": []}
    for row, ids in enumerate(ids_of(batch["text"], tokenizer)):
        ids = [*start_of(tokenizer), *ids, tokenizer.eos_token_id]
        for start in range(0, len(ids) - 1, config.max_length - 1):
            found["input_ids"].append(ids[start : start + config.max_length])
            found["rows"].append([row])
            found["length"].append(len(found["input_ids"][-1]))
    return found


def ids_of(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of whole texts without special tokens."""
    how = dict(add_special_tokens=False, padding=False, truncation=False, verbose=False)
    return tokenizer(clean(texts), return_attention_mask=False, return_token_type_ids=False, **how)["input_ids"]


def start_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a text begins with: the token for it, or for the end of the one before."""
    return [tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id]


TOKENIZER: dict = {}
MODEL = AutoModelForCausalLM
PEFT_TYPE = TaskType.CAUSAL_LM


def model_settings(label_names: list[str]) -> dict:
    return {}


def adapt(model: torch.nn.Module) -> torch.nn.Module:
    """Let the model, given a batch with `targets` (blocks, tokens), -100 where there is none, answer in place of its logits with
    (blocks, 2): the sum of the targets' log-likelihoods, and how many they are."""

    def of_words(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return -cross_entropy(logits, targets, reduction="none")[:, None]

    return scoring(model, getattr(model, model.base_model_prefix), of_words)


def scoring(
    model: torch.nn.Module,
    below: torch.nn.Module,
    of_words: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    inputs_of: Callable[[torch.Tensor], dict] = lambda targets: {},
) -> torch.nn.Module:
    """The model, which answers to a batch with `targets` with sums over each row's targets, and how many they are, the last.

    `below` is the part of it whose output its head scores words by; `of_words`: (logits (n, words), targets (n,)) -> what is summed
    (n, figures); `inputs_of`: targets -> further inputs. The head computes only where there is a target, and no tensor of all
    tokens by all words leaves the step.
    """
    plain, wanted = model.forward, []

    def keep_wanted(_, __, output):
        if wanted:
            output.last_hidden_state = output.last_hidden_state[wanted.pop()][None]
        return output

    @functools.wraps(plain)
    def forward(*args, targets: torch.Tensor | None = None, labels: torch.Tensor | None = None, **inputs):
        if targets is None:
            return plain(*args, **inputs)
        here = targets >= 0
        wanted[:] = [here]
        logits = plain(*args, **(inputs | inputs_of(targets))).logits
        logits = logits[here] if wanted else logits[0]  # OPT's head asks a part of its encoder, and all tokens are there still
        found = of_words(logits.float(), targets[here])
        summed = found.new_zeros(len(targets), found.shape[1]).index_add(0, here.nonzero()[:, 0], found)
        return MaskedLMOutput(logits=torch.cat([summed, here.sum(dim=1, keepdim=True).to(summed.dtype)], dim=1))

    model.forward = forward
    below.register_forward_hook(keep_wanted)
    return model


def collator(tokenizer: PreTrainedTokenizerBase, config: Config) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
    """`input_ids`, `attention_mask` and `targets` (blocks, tokens): each token's is the next one. `labels`, which the Trainer
    counts, are the tokens themselves, without the first, which nothing predicts."""

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = padded([row["input_ids"] for row in rows], tokenizer.pad_token_id)
        labels = padded([[-100, *row["input_ids"][1:]] for row in rows], -100)["input_ids"]
        targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        return batch | {"targets": targets, "labels": labels}

    return collate


def padded(rows: list[list[int]], value: int) -> dict[str, torch.Tensor]:
    """`input_ids` (rows, tokens), as long as the longest of them and a multiple of 8, and their `attention_mask`."""
    tensors, width = [torch.tensor(row) for row in rows], -(-max(map(len, rows)) // 8) * 8
    ids = pad_sequence([*tensors, torch.zeros(width, dtype=torch.long)], batch_first=True, padding_value=value)[:-1]
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(width) < lengths[:, None]).long()}


MIXED = True  # after steps of short texts alone a model has forgotten how long ones go on


def change(tokenizer: PreTrainedTokenizerBase, config: Config) -> None:
    return None


def loss(held: np.ndarray, n_labels: int, config: Config) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(what `adapt` gives, labels) -> the sum of the losses of all tokens that are predicted."""
    return lambda scores, labels: -scores[:, 0].sum()


FORMATS = ("merged",)

# --- predictions and what is measured ------------------------------------------------------------------------------------

METRICS = ("perplexity", "loss")


def predict(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Tokens,
    config: Config,
    show_progress: bool = True,
    collator: Callable = collator,
) -> np.ndarray:
    """Of each document the mean log-likelihood of its predicted tokens, and how many they are: (rows, 2)."""
    scores = np.empty((len(tokens), 2))
    for blocks, batches in training.predict(model, tokenizer, collator(tokenizer, config), tokens, config, show_progress):
        scores[blocks] = np.concatenate(batches)
    return by_document(scores, tokens.rows)


def by_document(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Blocks' sums and counts (blocks, 2), and of each the row it is of, as documents' means and counts."""
    sums, counts = (np.bincount(rows, column) for column in scores.T.astype(np.float64))
    return np.stack([sums / counts, counts], axis=1)


def validation_metrics(found: EvalPrediction, tokens: Tokens, label_names: list[str]) -> dict[str, float]:
    measured = lm_metrics(by_document(found.predictions, tokens.rows))
    return {name: measured[name] for name in METRICS}


def lm_metrics(documents: np.ndarray) -> dict:
    """Loss in nats a token, and perplexity, with intervals over documents."""
    mean, low, high = mean_of_all(-documents[:, 0], documents[:, 1])
    return {
        "perplexity": float(np.exp(mean)),
        "perplexity_ci95": np.exp([low, high]).tolist(),
        "loss": mean,
        "loss_ci95": [low, high],
        "n": len(documents),
        "tokens": int(documents[:, 1].sum()),
    }


def calibrate(documents: np.ndarray, validation: Split) -> dict:
    return {}


def interval(documents: np.ndarray, split: Split) -> list[float]:
    return lm_metrics(documents)["perplexity_ci95"]


def measure(documents: np.ndarray, test: Split, lengths: np.ndarray, label_names: list[str], calibrated: dict) -> dict:
    return lm_metrics(documents)


# --- what evaluate.py leaves and says ------------------------------------------------------------------------------------

SHOWN = 6  # documents of which samples stand on the page
PROMPT = 24  # tokens of them that are given


def samples(model: PeftModel, tokenizer: PreTrainedTokenizerBase, test: Split, run: "Run") -> list[dict]:
    """The beginnings of some documents, how the model goes on, and how they go on themselves."""
    found = []
    for row, text in zip(
        test.rows[:SHOWN].tolist(), clean(test.select(range(min(SHOWN, len(test)))).columns()["text"]), strict=True
    ):
        (ids,) = ids_of([text], tokenizer)
        given = min(PROMPT, len(ids) // 2)
        prompt, actual = (tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:given], ids[given : 3 * PROMPT]))
        (continued,) = answer(model, tokenizer, {"text": [prompt]}, run)["continuation"]
        found.append({"row": row, "prompt": prompt, "model": continued, "actual": actual})
    return found


def write(folder: Path, config: Config, metrics: dict, test: Split, documents: np.ndarray, lengths: np.ndarray) -> list[Section]:
    """predictions.parquet and errors.csv into `folder`; what stands on the page.

    predictions.parquet has a row for each document: `row` (number in the split), `tokens` that were predicted, and their mean
    `loss`. errors.csv has the same with the text, the hardest first.
    """
    both = Markup('<span class="sides"><span><b>the model</b> {}</span><span><b>the document</b> {}</span></span>')
    drawn = ", ".join(f"{name} {value}" for name, value in OPTIONS.items())
    shown = [
        Mistake(None, f"row {one['row']}: {one['prompt']} …", both.format(one["model"], one["actual"]))
        for one in metrics["samples"]
    ]
    return [
        figures_of(metrics, remark(metrics)),
        Section("How it goes on", f"Drawn with {drawn}; opened, beside how the text itself goes on.", mistakes=(("", shown),)),
        hardest(folder, test, documents),
    ]


def figures_of(metrics: dict, text: str) -> Section:
    low, high = metrics["loss_ci95"]
    figures = (
        ("loss", f"{metrics['loss']:.4f}", f"nats a token; 95 % interval {low:.4f} to {high:.4f}"),
        ("tokens", f"{metrics['tokens']:,}", f"predicted in {metrics['n']:,} documents"),
        ("validation perplexity", f"{metrics['validation']['perplexity']:.3f}", f"{metrics['validation']['n']:,} documents"),
    )
    return Section(text=text, figures=figures)


def hardest(folder: Path, test: Split, documents: np.ndarray) -> Section:
    """predictions.parquet and errors.csv; the documents with the highest loss, and with the least."""
    losses, tokens = -documents[:, 0], documents[:, 1].astype(int)
    table = pyarrow.table({"row": test.rows, "tokens": tokens, "loss": losses})
    pyarrow.parquet.write_table(table, folder / "predictions.parquet")
    order = np.argsort(-losses, kind="stable")

    def rows_at(positions: np.ndarray) -> pd.DataFrame:
        return table.take(positions).to_pandas().assign(text=clean(test.select(positions).columns()["text"]))

    write_csv(folder / "errors.csv", order, rows_at)
    kinds = []
    for name, positions in (("The hardest", order[:MISTAKES]), ("The easiest", order[::-1][:MISTAKES])):
        lines = rows_at(positions[: len(order) // 2 + 1]).itertuples()
        kinds.append(
            (
                name,
                [Mistake(None, f"perplexity {np.exp(one.loss):,.1f}, row {one.row}: {one.text[:100]}", one.text) for one in lines],
            )
        )
    return Section("The hardest and the easiest documents", f"All {len(order):,} are in errors.csv.", mistakes=tuple(kinds))


def headline(metrics: dict) -> tuple[str, str]:
    low, high = metrics["perplexity_ci95"]
    return f"Perplexity {metrics['perplexity']:.3f}", f"95 % interval {low:.3f} to {high:.3f} over documents"


def remark(metrics: dict) -> str:
    return (
        f"Perplexity is of this model's own tokens: models that cut texts otherwise can't be compared by it. Documents were read in "
        f"blocks of {metrics['run']['config']['max_length']} tokens, none across two documents, each token predicted once."
    )


def show_metrics(metrics: dict) -> None:
    for name in METRICS:
        low, high = metrics[f"{name}_ci95"]
        print(f"{name:<10} {metrics[name]:.4f}   95 % interval {low:.4f} to {high:.4f} over documents")
    print(f"tokens     {metrics['tokens']:,}   predicted in {metrics['n']:,} documents")


COMPARED = ["row", "tokens", "loss"]


def compare(a: pd.DataFrame, b: pd.DataFrame, test: Split) -> tuple[dict, np.ndarray, Callable[[np.ndarray], pd.DataFrame]]:
    """The losses of two models on the same tokens, their paired difference; all documents, by how far they differ."""
    both = a.assign(loss_a=a.loss, loss_b=b.loss).drop(columns="loss")
    order = np.argsort(-(both.loss_a - both.loss_b).abs().to_numpy(), kind="stable")

    def rows_at(positions: np.ndarray) -> pd.DataFrame:
        return both.iloc[positions].assign(text=clean(test.select(positions).columns()["text"]))

    difference, low, high = mean_of_all((both.loss_a - both.loss_b).to_numpy(), a.tokens.to_numpy())
    perplexity = [float(np.exp(mean_of_all(one.loss.to_numpy(), one.tokens.to_numpy())[0])) for one in (a, b)]
    found = {"difference": difference, "difference_ci95": [low, high], "n": len(a), "perplexity": perplexity}
    return found | {"rows_differ": int((both.loss_a != both.loss_b).sum())}, order, rows_at


def show_comparison(found: dict, names: tuple[str, str]) -> None:
    low, high = found["difference_ci95"]
    for name, value in zip(names, found["perplexity"], strict=True):
        print(f"{value:.4f}   {name}   perplexity over {found['n']:,} documents")
    print(
        f"difference of the losses {found['difference']:+.4f} nats a token, 95 % interval {low:+.4f} to {high:+.4f} (paired, over documents)"
    )


# --- use -----------------------------------------------------------------------------------------------------------------

OPTIONS = dict(max_new_tokens=60, temperature=0.8, top_p=0.95, seed=0)


def answer(model: PeftModel, tokenizer: PreTrainedTokenizerBase, batch: dict[str, list], run: "Run", **options) -> dict[str, list]:
    """The `continuation` of each prompt, drawn with OPTIONS or what is given in their place; temperature 0 takes the likeliest.

    Each prompt is read alone, with the seed anew: what is drawn does not depend on what else is asked. Of one longer than
    the model can read its end is.
    """
    options = OPTIONS | options
    for name, fits, what in (
        ("max_new_tokens", options["max_new_tokens"] >= 1, "at least 1"),
        ("temperature", 0 <= options["temperature"] < float("inf"), "0 or more"),
        ("top_p", 0 < options["top_p"] <= 1, "above 0 and at most 1"),
        ("seed", 0 <= options["seed"] < 2**32, "0 or more"),
    ):
        if not fits:
            raise UserError(f"--{name} {options[name]} is out of range: it must be {what}")
    positions = getattr(model.config, "max_position_embeddings", None) or 10**9
    room = positions - options["max_new_tokens"]
    if room < 1:
        raise UserError(f"max_new_tokens={options['max_new_tokens']} is beyond the {positions} positions of the model: lower it")
    drawn = dict(do_sample=options["temperature"] > 0)
    if drawn["do_sample"]:
        drawn |= dict(temperature=options["temperature"], top_p=options["top_p"], top_k=0)
    found = []
    for ids in ids_of(batch["text"], tokenizer):
        ids = torch.tensor([[*start_of(tokenizer), *ids][-room:]], device=model.device)
        set_seed(options["seed"])
        with torch.no_grad():
            whole = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=options["max_new_tokens"],
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                use_cache=True,
                **drawn,
            )
        found.append(tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True))
    return {"continuation": found}


def as_json(inputs: dict[str, str], answered: dict) -> dict:
    return inputs | {"continuation": answered["continuation"]}


def as_line(inputs: dict[str, str], answered: dict, label_names: list[str]) -> str:
    return inputs["text"] + answered["continuation"]


def code(config: Config, load: str, calibrated: dict) -> str:
    return f"""import torch
{load}


def go_on(text):
    start = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
    ids = torch.tensor([start + tokenizer(text, add_special_tokens=False)["input_ids"]])
    drawn = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens={OPTIONS["max_new_tokens"]},
        do_sample=True,
        temperature={OPTIONS["temperature"]},
        top_p={OPTIONS["top_p"]},
        top_k=0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return text + tokenizer.decode(drawn[0, ids.shape[1]:], skip_special_tokens=True)


torch.manual_seed({OPTIONS["seed"]})
print(go_on("This film"))
"""


def pipeline(config: Config) -> tuple[str, str]:
    return "", "It draws with settings of its own, and does not put the sign of a text's beginning before the prompt."


EXAMPLES = ["This film", "The worst thing about it is", "I had never heard of the director, but"]


def demo_outputs() -> list:
    """What app.py shows of `demo`."""
    import gradio

    return [gradio.Textbox(label="How it goes on", lines=8)]


def demo(model: PeftModel, tokenizer: PreTrainedTokenizerBase, text: str, run: "Run") -> str:
    """The text as it goes on."""
    return text + answer(model, tokenizer, {"text": [text]}, run)["continuation"][0]
