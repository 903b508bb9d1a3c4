"""The base model with its LoRA adapter: build it for training, reload it for use."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import DUMMY_TARGET_MODULES
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig, PretrainedConfig, PreTrainedTokenizerBase, set_seed
from transformers.pytorch_utils import Conv1D

from config import Config
from finetuning import fast
from finetuning.errors import UserError
from finetuning.sources import Source
from finetuning.tasks import task_of


@dataclass(frozen=True)
class Architecture:
    """Where LoRA goes: patterns over module names."""

    query_value: str  # query and value alone, or where they are one with the key, that one
    attention: str
    mlp: str
    first_position: int = 0  # RoBERTa and its kin start counting positions behind the padding id


_BERT = Architecture(
    query_value=r".*\.attention\.self\.(query|value)",
    attention=r".*\.attention\.(self\.(query|key|value)|output\.dense)",
    mlp=r".*\.layer\.\d+\.(intermediate|output)\.dense",
)
_ROBERTA = replace(_BERT, first_position=2)
_LLAMA = Architecture(
    query_value=r".*\.self_attn\.[qv]_proj",
    attention=r".*\.self_attn\.[qkvo]_proj",
    mlp=r".*\.mlp\.(gate|up|down)_proj",
)
# Encoder and decoder, and the decoder's attention to the encoder.
_BART = Architecture(
    query_value=r".*\.(self|encoder)_attn\.[qv]_proj",
    attention=r".*\.(self|encoder)_attn\.(q|k|v|out)_proj",
    mlp=r".*\.layers\.\d+\.fc[12]",
)
_T5 = Architecture(
    query_value=r".*\.(SelfAttention|EncDecAttention)\.[qv]",
    attention=r".*\.(SelfAttention|EncDecAttention)\.[qkvo]",
    mlp=r".*\.DenseReluDense\.w[io](_[01])?",
)
# By the config's model_type. A further architecture is a further entry.
ARCHITECTURES = {
    "distilbert": Architecture(query_value=r".*\.[qv]_lin", attention=r".*\.(q|k|v|out)_lin", mlp=r".*\.ffn\.lin[12]"),
    "bert": _BERT,
    "electra": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "mpnet": replace(_ROBERTA, query_value=r".*\.attn\.[qv]", attention=r".*\.attn\.[qkvo]"),
    "albert": Architecture(
        query_value=r".*\.attention\.(query|value)",
        attention=r".*\.attention\.(query|key|value|dense)",
        mlp=r".*\.(ffn|ffn_output)",
    ),
    "deberta-v2": replace(
        _BERT,
        query_value=r".*\.attention\.self\.(query|value)_proj",
        attention=r".*\.attention\.(self\.(query|key|value)_proj|output\.dense)",
    ),
    "modernbert": Architecture(query_value=r".*\.attn\.Wqkv", attention=r".*\.attn\.(Wqkv|Wo)", mlp=r".*\.mlp\.(Wi|Wo)"),
    "gpt2": Architecture(query_value=r".*\.attn\.c_attn", attention=r".*\.attn\.c_(attn|proj)", mlp=r".*\.mlp\.c_(fc|proj)"),
    **dict.fromkeys(("marian", "bart", "mbart", "m2m_100"), _BART),
    **dict.fromkeys(("t5", "mt5", "umt5"), _T5),
    "opt": replace(_LLAMA, attention=r".*\.self_attn\.(q|k|v|out)_proj", mlp=r".*\.layers\.\d+\.fc[12]"),
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
}
TARGETS = ("all-linear", "attention", "mlp", "query-value")


def read_model_config(source: Source, config: Config) -> PretrainedConfig:
    """The model's own config, checked against ours: known architecture, enough positions. Raises `UserError`."""
    try:
        model_config = AutoConfig.from_pretrained(source.path)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"model_name: {source.path} holds no model config that transformers knows ({error})") from error
    if type(model_config) not in task_of(config).MODEL._model_mapping:
        raise UserError(f"model_name: transformers has no {config.task} for the kind of {source.name}, {model_config.model_type}")
    if config.quantization == "4bit" and not (torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes")):
        raise UserError("quantization=4bit needs a CUDA GPU and bitsandbytes (pip install bitsandbytes): set it to none")
    architecture = ARCHITECTURES.get(model_config.model_type)
    positions = getattr(model_config, "max_position_embeddings", None)
    if positions is not None:
        positions -= architecture.first_position if architecture else 0
        if config.max_length > positions:
            raise UserError(f"max_length={config.max_length} is beyond the {positions} positions of {source.name}: lower it")
    return model_config


def load_tokenizer(source: Source, config: Config) -> PreTrainedTokenizerBase:
    """The model's tokenizer, padding on the right, with the end of a text where it has no token to pad with.

    Raises `UserError` where the folder has none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, padding_side="right", **task_of(config).TOKENIZER)
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise UserError(f"model_name: {source.path} holds no tokenizer that transformers can load ({error})") from error
    if tokenizer.pad_token is None:  # GPT-2, Llama
        if tokenizer.eos_token is None:
            raise UserError(f"model_name: the tokenizer in {source.path} has no token to pad with, and none for the end of a text")
        tokenizer.pad_token = tokenizer.eos_token
    if hasattr(task_of(config), "decide"):  # what is saved with the model says where a text is cut; a language model reads on
        tokenizer.model_max_length = config.max_length
        tokenizer.truncation_side = "left" if config.truncation == "tail" else "right"
    return tokenizer


def build_base(source: Source, label_names: list[str], config: Config) -> torch.nn.Module:
    """The pre-trained model in float32 with the task's head, a new one where the file has none, seeded.

    Maps `input_ids` and `attention_mask`, both (batch, tokens), to `logits`, for a text's label (batch, labels).
    """
    task, model_config = task_of(config), read_model_config(source, config)
    if model_config.pad_token_id is None:
        model_config.pad_token_id = load_tokenizer(source, config).pad_token_id  # by it a decoder finds a text's last token
    model_config.use_cache = False
    numbers = [name for name, value in model_config.to_dict().items() if type(value) in (float, int)]
    dropouts = [name for name in numbers if "dropout" in name or name.endswith("pdrop")]
    dropouts.append("classifier_dropout")  # which some models take for 0.1 where it is not given
    for name, value in (task.model_settings(label_names) | dict.fromkeys(dropouts, config.dropout)).items():
        setattr(model_config, name, value)
    known = model_config.model_type in ARCHITECTURES  # others may hand their attention what ours does not take
    set_seed(config.seed)
    return load(
        task,
        source.path,
        config=model_config,
        dtype=torch.float32,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        quantization_config=_four_bits() if config.quantization == "4bit" else None,
        attn_implementation=fast.ATTENTION if fast.on_cpu() and known and fast.has_sdpa(task.MODEL, model_config) else None,
    )


def load(task: ModuleType, path: str | Path, **options) -> torch.nn.Module:
    """A model of the task's class, which answers with what the task predicts; `missing`: names of weights its file lacks."""
    model, about = task.MODEL.from_pretrained(path, output_loading_info=True, **options)
    model.missing = about["missing_keys"]
    return task.adapt(model) if hasattr(task, "adapt") else model


def _four_bits() -> BitsAndBytesConfig:
    """QLoRA's settings; the new head stays as it is. Not tried yet."""
    heads = ["classifier", "pre_classifier", "score", "pooler", "head"]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=heads,
    )


def add_lora(base: torch.nn.Module, config: Config) -> PeftModel:
    """Freeze `base`, put LoRA beside its target modules, let its head train, and make it fast on this machine.

    The other methods are peft models without LoRA, so that all are saved and loaded alike: what trains is "to save".
    """
    encoder, words = base.base_model, _tied_words(base)
    over_words = base.get_output_embeddings() is not None
    whole = [] if encoder is base else [*_heads(base, encoder, words)]  # T5's parts are those of the whole model
    if config.method == "full" and encoder is base:
        whole = [name for name, _ in base.named_children()]
    elif config.method == "full":  # peft looks for endings; of classifiers among names that begin with base_model.model
        whole.append(base.base_model_prefix if over_words else f".model.{base.base_model_prefix}")
    elif over_words:  # a head that the model's file has stays as it is
        whole = [name for name in whole if any(weight.startswith(f"{name}.") for weight in base.missing)]
    elif getattr(encoder, "pooler", None) is not None:
        whole.append("pooler")  # BERT's: a frozen one saturates, no training at lr 2e-3
    if config.train_embeddings:
        whole += [name for name in _words(base) if not any(f"{name}.".startswith(f"{part}.") for part in whole)]
    lora_config = LoraConfig(
        task_type=task_of(config).PEFT_TYPE,
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=(_target_modules(base, config.target_modules) if config.method == "lora" else DUMMY_TARGET_MODULES),
        modules_to_save=whole,
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in base.modules()),  # GPT-2's weights are the other way round
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights=config.init_lora_weights == "default" or config.init_lora_weights,
    )
    if config.quantization == "4bit":
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    model = get_peft_model(base, lora_config)
    if config.method == "full":
        for name, part in base.named_modules():
            if isinstance(part, ModulesToSaveWrapper) and (encoder is base or name == base.base_model_prefix):
                part.original_module = None  # a frozen copy
        for name in base._keys_to_ignore_on_save or []:  # Marian's positions, which are computed and not saved
            _part(base, name).requires_grad = False
    if config.method == "full" or config.train_embeddings:
        _tie(model)
        _keep_zero(base)
    fast.prepare(model, config)
    return model


def _tied_words(base: torch.nn.Module) -> torch.nn.Module | None:
    """The layer of a language model that scores words by the same weights as embed them."""
    return base.get_output_embeddings() if base.config.get_text_config().tie_word_embeddings else None


def _words(base: torch.nn.Module) -> list[str]:
    """Names of what embeds words and scores them. Those of one weight are all named: peft copies each, and `_tie` makes them one."""
    tied = {name.rpartition(".")[0] for pair in base.all_tied_weights_keys.items() for name in pair}
    parts = (base.get_input_embeddings(), base.get_output_embeddings())
    return [name for name, part in base.named_modules() if name in tied or any(part is one for one in parts)]


def _heads(part: torch.nn.Module, encoder: torch.nn.Module, words: torch.nn.Module | None, before: str = "") -> Iterator[str]:
    """Names of the modules with parameters outside `encoder` and `words`, as large as can be."""
    for name, child in part.named_children():
        if child is encoder or child is words or not any(True for _ in child.parameters()):
            continue
        if words is not None and any(module is words for module in child.modules()):
            yield from _heads(child, encoder, words, f"{before}{name}.")
        else:
            yield before + name


def _tie(model: PeftModel) -> None:
    """Let weights that are one stay one, as those that embed words and score them, where peft trains a copy of the model."""
    base = model.get_base_model()
    for tied, weight in base.all_tied_weights_keys.items():
        place, name = tied.rpartition(".")[::2]
        setattr(_part(base, place), name, _part(base, weight))


def _keep_zero(base: torch.nn.Module) -> None:
    """Let the embedding of padding stay zero where it is: of Marian's, with which its decoder begins, a head over words that has the
    same weights would make something else, and other programs take it for granted."""
    for part in base.modules():
        trains = isinstance(part, torch.nn.Embedding) and part.weight.requires_grad
        if trains and part.padding_idx is not None and not part.weight[part.padding_idx].any():
            row = torch.tensor([part.padding_idx])
            part.weight.register_hook(lambda gradient, row=row: gradient.index_fill(0, row.to(gradient.device), 0))


def _part(base: torch.nn.Module, name: str) -> torch.nn.Module | torch.nn.Parameter:
    """A part of `base` by its name there, in the copies that peft trains."""
    for step in name.split("."):
        base = getattr(base.modules_to_save["default"] if isinstance(base, ModulesToSaveWrapper) else base, step)
    return base.modules_to_save["default"] if isinstance(base, ModulesToSaveWrapper) else base


def _target_modules(base: torch.nn.Module, wanted: str) -> str | list[str]:
    """A pattern for one of `TARGETS`, or the list of names given; what peft calls target_modules."""
    architecture = ARCHITECTURES.get(base.config.model_type)
    linear = [name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    endings = sorted({".".join(part for part in name.split(".")[-2:] if not part.isdigit()) for name in linear})
    if wanted in TARGETS:
        if architecture is None:
            raise UserError(
                f"target_modules={wanted} is not known for {base.config.model_type} (only for {', '.join(ARCHITECTURES)}): "
                f"give names with commas between them, out of {', '.join(endings)}"
            )
        if wanted == "all-linear":
            return f"({architecture.attention})|({architecture.mlp})"
        return getattr(architecture, wanted.replace("-", "_"))
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    unknown = [name for name in names if not any(f".{module}".endswith(f".{name}") for module in linear)]
    if unknown or not names:
        raise UserError(
            f"target_modules={wanted}: no linear layer is called {', '.join(unknown) or 'that'}. "
            f"Use {', '.join(TARGETS)}, or names out of {', '.join(endings)}"
        )
    return names


def load_adapter(base: torch.nn.Module, adapter: Path, config: Config) -> PeftModel:
    """Put a saved adapter, head included, onto `base`; the model is as it was when training ended."""
    model = PeftModel.from_pretrained(base, str(adapter), is_trainable=True)
    if config.method == "full" or config.train_embeddings:
        _tie(model)
    fast.prepare(model, config)
    return model.eval()


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(trainable, total) parameters; the frozen copies that peft keeps of what it saves whole are not counted."""
    counted = [(p.requires_grad, p.numel()) for name, p in model.named_parameters() if ".original_module." not in name]
    return sum(n for trains, n in counted if trains), sum(n for _, n in counted)
