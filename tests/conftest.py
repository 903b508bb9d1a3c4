"""Fixtures: tiny models, small data sets, and a function that runs a script in this process."""

import itertools
import json
import os
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import: the tests use no network
os.environ["HF_HOME"] = str(Path(__file__).resolve().parent.parent / ".pytest_cache" / "huggingface")  # not the user's models
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny: a second thread only waits
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

GOOD = ["a fine film with a warm heart", "great cast and a clever plot", "we loved every minute of it", "moving, funny and wise"]
BAD = ["a dull film without a heart", "poor cast and a thin plot", "we hated every minute of it", "boring, loud and long"]
WORDS = sorted({word for text in GOOD + BAD for word in text.replace(",", " ,").split()} | {"."} | {str(i) for i in range(60)})

_SMALL = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
_ROBERTA = _SMALL | dict(pad_token_id=1, max_position_embeddings=66)
_GROUPED = _SMALL | dict(num_key_value_heads=2, head_dim=8)
TINY = {
    "distilbert": dict(dim=32, hidden_dim=64, n_layers=2, n_heads=4),
    "bert": _SMALL,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "mpnet": _ROBERTA,
    "electra": _SMALL | dict(embedding_size=32),
    "albert": _SMALL | dict(embedding_size=16),
    "deberta-v2": _SMALL | dict(relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False),
    "modernbert": _SMALL | dict(global_attn_every_n_layers=2, local_attention=8, cls_token_id=3, sep_token_id=4),
    "gpt2": dict(n_embd=32, n_layer=2, n_head=4),
    "opt": dict(hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32),
    "llama": _SMALL | dict(num_key_value_heads=2),
    "qwen2": _SMALL | dict(num_key_value_heads=2),
    "qwen3": _GROUPED,
    "gemma2": _GROUPED | dict(sliding_window=8),
    "gemma3_text": _GROUPED | dict(sliding_window=8),
    # These are not in TESTED.
    "convbert": _SMALL | dict(embedding_size=32),
    "longformer": _ROBERTA | dict(attention_window=8),
}
_BART = dict(d_model=32, init_std=0.2) | {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in dict(layers=2, attention_heads=4, ffn_dim=64).items()
}
_T5 = dict(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
T5 = ("t5", "mt5", "umt5")
TRANSLATORS = {
    **dict.fromkeys(("marian", "bart", "mbart", "m2m_100"), _BART),
    "t5": _T5,
    **dict.fromkeys(("mt5", "umt5"), _T5 | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
}
# A turn is [CLS], a word for the role, the content and [SEP]. Like many templates, it puts something after the end of a turn.
CHAT_TEMPLATE = """{% set names = {'system': 'wise', 'user': 'we', 'assistant': 'great'} %}{% for message in messages -%}
[CLS]{{ names[message.role] }} {{ message.content }}[SEP] .{% endfor %}{% if add_generation_prompt %}[CLS]great {% endif %}"""
DECODERS = ("gpt2", "opt", "llama", "qwen2", "qwen3", "gemma2", "gemma3_text")


def make_model(folder: Path, model_type: str = "distilbert", seed: int = 0) -> Path:
    """Save a random model with two layers of width 32, and a tokenizer whose file asks for truncation and padding to 8 tokens.

    Each word is a token. The tokenizer of an encoder puts [CLS] and [SEP] around a text, that of a translator puts [SEP] after it.
    The tokenizer of a decoder has an end-of-text token and no padding token.
    """
    words = ["[PAD]", "<pad>", "[UNK]", "[CLS]", "[SEP]", *WORDS, "<|endoftext|>"]
    if model_type == "marian":  # its padding is the last token, which other programs rely on
        words = ["[PAD]", "[unused]", *words[2:], "<pad>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    shape = (TINY | TRANSLATORS)[model_type]
    pad = vocabulary["<pad>"] if shape.get("pad_token_id") or model_type == "marian" else 0
    torch.manual_seed(seed)
    settings = {"max_position_embeddings": 64, "pad_token_id": pad} | shape
    if model_type in DECODERS:
        settings |= dict(pad_token_id=None, bos_token_id=None, eos_token_id=4)
    auto_class = transformers.AutoModel
    if model_type in TRANSLATORS:
        settings |= dict(
            bos_token_id=None,
            eos_token_id=4,
            forced_eos_token_id=None,
            decoder_start_token_id=pad if model_type in ("marian", *T5) else 4,
        )
        auto_class = transformers.AutoModelForSeq2SeqLM
    config = transformers.AutoConfig.for_model(model_type, vocab_size=len(vocabulary), **settings)
    auto_class.from_config(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.enable_truncation(8)
    names = dict(unk_token="[UNK]")
    if model_type in DECODERS:
        names |= dict(eos_token="[SEP]")
    elif model_type in TRANSLATORS:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 4)])
        tokenizer.decoder = decoders.WordPiece()  # joins words with spaces
        names |= dict(eos_token="[SEP]", pad_token=words[pad])
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]
        )
        tokenizer.enable_padding(length=8)
        names |= dict(pad_token=words[pad], cls_token="[CLS]", sep_token="[SEP]", mask_token="<|endoftext|>")
    if model_type == "bert":
        names |= dict(model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


def make_rows(n: int = 80) -> pd.DataFrame:
    """Return `n` different texts of 6 to 30 words, half of them "good" and half "bad"."""
    texts = [((GOOD, BAD)[i % 2][i // 2 % 4] + " ") * (1 + i % 4) + str(i % 60) + " " + str(i // 60) for i in range(n)]
    return pd.DataFrame({"review": texts, "sentiment": ["good", "bad"] * (n // 2)})


def make_pairs(n: int = 400) -> pd.DataFrame:
    """Return `n` different texts of one to four numbers below 8, and their translations: each number plus 20."""
    texts = [text for length in range(1, 5) for text in itertools.product(range(8), repeat=length)]
    rows = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:n]]
    return pd.DataFrame(
        {name: [" ".join(str(first + i) for i in row) for row in rows] for name, first in (("low", 0), ("high", 20))}
    )


def write_lines(path, rows: list[dict]):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def change_a_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def as_flags(settings: dict) -> list[str]:
    """Return settings as flags for the command line."""
    return [str(part) for name, value in settings.items() for part in (f"--{name}", value)]


@pytest.fixture
def pictures() -> None:
    """Ask for this to draw the pictures of runs."""


@pytest.fixture(autouse=True)
def small_pictures(request, monkeypatch):
    """Write empty pictures unless a test asks for `pictures`: drawing takes two thirds of the time of evaluate.py."""

    def save_empty(figure, path):
        from matplotlib.figure import Figure  # delayed, as many tests draw nothing

        Figure().savefig(path, dpi=1)

    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("finetuning.results.plots.save", save_empty)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny-distilbert")


@pytest.fixture(scope="session")
def data_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("data") / "reviews.csv"
    make_rows().to_csv(file, index=False)
    return file


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Run a script in this process as `python SCRIPT FLAGS` would; return its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(script: str, *flags) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
        capsys.readouterr()
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return SimpleNamespace(code=code, **capsys.readouterr()._asdict())

    return run


@pytest.fixture
def tiny_flags(model_dir, data_file) -> list[str]:
    """Return the flags of a run that takes seconds and still learns to tell good from bad."""
    flags = dict(model_name=model_dir, dataset_name=data_file, max_length=32, batch_size=8, num_train_epochs=12, learning_rate=0.01)
    flags |= dict(early_stopping_patience=0, eval_steps=0.5, run_name="run")
    return as_flags(flags)


def train_once(kept: Path, call, tmp_path: Path, flags: list) -> Path:
    """Return the folder outputs/run with a finished run: the first test trains it, and the others get a copy from `kept`."""
    folder = tmp_path / "outputs" / "run"
    if not kept.exists():
        trained = call("fine_tune.py", *flags)
        assert trained.code == 0, trained.err
        shutil.copytree(folder, kept)
    else:
        shutil.copytree(kept, folder)
    return folder


@pytest.fixture(scope="session")
def kept_runs(tmp_path_factory) -> Path:
    """Return where the runs of `finished_run` and `chat_run` are kept."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def finished_run(kept_runs, call, tiny_flags, tmp_path) -> Path:
    """Return the folder of a run of one epoch, for tests to which its numbers do not matter."""
    return train_once(kept_runs / "labels", call, tmp_path, [*tiny_flags, "--num_train_epochs", 1])


@pytest.fixture(scope="session")
def entity_files(tmp_path_factory) -> Path:
    """Return a folder with the same sentences in all formats for named entities."""
    from entity_files import write_entity_files

    return write_entity_files(tmp_path_factory.mktemp("entity_files"))


@pytest.fixture
def entity_flags(model_dir, entity_files) -> list[str]:
    """Return the flags of a run that finds named entities; it takes seconds."""
    settings = dict(task="token-classification", model_name=model_dir, dataset_name=entity_files / "iob2.conll", max_length=16)
    settings |= dict(batch_size=8, num_train_epochs=12, learning_rate=0.01, early_stopping_patience=0, eval_steps=0.5)
    return as_flags(settings | dict(run_name="run"))


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory):
    """Return the folder of a tiny decoder whose tokenizer has a chat template."""
    folder = make_model(tmp_path_factory.mktemp("models") / "tiny-chat", "llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[CLS]"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def write_chats(folder: Path) -> Path:
    """Write prompts with two answers each to the file rows.jsonl."""
    rows = [{"prompt": f"a film {i}", "completion": f"{word} {i}"} for i in range(50) for word in ("great", "moving")]
    return write_lines(folder / "rows.jsonl", rows)


@pytest.fixture
def chat_flags(chat_model, tmp_path):
    """Return the flags of a run on prompts of rows.jsonl, each with two answers."""
    settings = dict(task="causal-lm", model_name=chat_model, dataset_name=write_chats(tmp_path))
    settings |= dict(max_length=32, batch_size=8, learning_rate=0.01, eval_steps=0.5, max_new_tokens=6, run_name="run")
    return as_flags(settings)


@pytest.fixture
def chat_run(kept_runs, call, chat_flags, tmp_path) -> Path:
    """Return the folder of a finished run with the flags of `chat_flags`."""
    return train_once(kept_runs / "chat", call, tmp_path, [*chat_flags, "--dataset_name", write_chats(kept_runs)])
