"""The base model with its LoRA adapter: build it for training, reload it for use."""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    set_seed,
)

from config import Config
from finetuning import fast
from finetuning.errors import UserError
from finetuning.sources import Source


@dataclass(frozen=True)
class Architecture:
    """What must be known of an architecture: patterns over module names, and names in its config."""

    query_value: str
    attention: str
    mlp: str
    head: tuple[str, ...]  # what turns the encoder's output into labels: trained whole and saved beside the adapter
    dropout: tuple[str, ...]
    sdpa: bool = True  # its attention goes through transformers' AttentionInterface
    first_position: int = 0  # RoBERTa and its kin start counting positions behind the padding id


_BERT = dict(
    query_value=r".*\.attention\.self\.(query|value)",
    attention=r".*\.attention\.(self\.(query|key|value)|output\.dense)",
    mlp=r".*\.layer\.\d+\.(intermediate|output)\.dense",
    dropout=("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
)
# By the config's model_type. A further architecture is a further entry.
ARCHITECTURES = {
    "distilbert": Architecture(
        query_value=r".*\.[qv]_lin",
        attention=r".*\.(q|k|v|out)_lin",
        mlp=r".*\.ffn\.lin[12]",
        head=("pre_classifier", "classifier"),
        dropout=("dropout", "attention_dropout", "seq_classif_dropout"),
    ),
    "bert": Architecture(**_BERT, head=("pooler", "classifier")),  # a frozen pooler saturates: no training at lr 2e-3
    "roberta": Architecture(**_BERT, head=("classifier",), first_position=2),
    "xlm-roberta": Architecture(**_BERT, head=("classifier",), first_position=2),
    "mpnet": Architecture(
        query_value=r".*\.attn\.[qv]",
        attention=r".*\.attn\.[qkvo]",
        mlp=_BERT["mlp"],
        head=("classifier",),
        dropout=("hidden_dropout_prob", "attention_probs_dropout_prob"),
        sdpa=False,
        first_position=2,
    ),
}
TARGETS = ("all-linear", "attention", "mlp", "query-value")


def read_model_config(source: Source, config: Config) -> PretrainedConfig:
    """The model's own config, checked against ours: known architecture, enough positions. Raises `UserError`."""
    try:
        model_config = AutoConfig.from_pretrained(source.path)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"model_name: {source.path} holds no model config that transformers knows ({error})") from error
    architecture = ARCHITECTURES.get(model_config.model_type)
    positions = getattr(model_config, "max_position_embeddings", None)
    if positions is not None:
        positions -= architecture.first_position if architecture else 0
        if config.max_length > positions:
            raise UserError(f"max_length={config.max_length} is beyond the {positions} positions of {source.name}: lower it")
    return model_config


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises `UserError` where the folder has none."""
    try:
        return AutoTokenizer.from_pretrained(source.path)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"model_name: {source.path} holds no tokenizer that transformers can load ({error})") from error


def build_base(source: Source, label_names: list[str], config: Config) -> torch.nn.Module:
    """The pre-trained encoder in float32 with a new classification head, seeded.

    Maps `input_ids` and `attention_mask`, both (batch, tokens), to `logits` (batch, labels).
    """
    model_config = read_model_config(source, config)
    model_config.id2label = dict(enumerate(label_names))
    model_config.label2id = {name: i for i, name in enumerate(label_names)}
    if architecture := ARCHITECTURES.get(model_config.model_type):
        for name in architecture.dropout:
            setattr(model_config, name, config.dropout)
    elif config.dropout:
        raise UserError(f"dropout={config.dropout}: where {model_config.model_type} keeps its dropout is not known; set it to 0")
    set_seed(config.seed)
    return AutoModelForSequenceClassification.from_pretrained(
        source.path,
        config=model_config,
        dtype=torch.float32,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        attn_implementation=fast.ATTENTION if fast.on_cpu() and architecture and architecture.sdpa else None,
    )


def add_lora(base: torch.nn.Module, config: Config) -> PeftModel:
    """Freeze `base`, put LoRA beside its target modules, let its head train, and make it fast on this machine.

    The other methods are peft models without LoRA, so that all are saved and loaded alike: what trains is "to save".
    """
    architecture = ARCHITECTURES.get(base.config.model_type)
    if config.method != "lora" and architecture is None:
        raise UserError(f"method={config.method}: the head of {base.config.model_type} is not known; add it to finetuning/model.py")
    whole = list(architecture.head) if architecture else None
    if config.method == "full":
        whole = [base.base_model_prefix, *(name for name in whole if hasattr(base, name))]
    lora_config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=(
            _target_modules(base, architecture, config.target_modules) if config.method == "lora" else DUMMY_TARGET_MODULES
        ),
        modules_to_save=whole,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights=config.init_lora_weights == "default" or config.init_lora_weights,
    )
    model = get_peft_model(base, lora_config)
    if config.method == "full":
        getattr(base, base.base_model_prefix).original_module = None  # a frozen copy of the encoder
    fast.prepare(model, config)
    return model


def _target_modules(base: torch.nn.Module, architecture: Architecture | None, wanted: str) -> str | list[str]:
    """A pattern for one of `TARGETS`, or the list of names given; what peft calls target_modules."""
    linear = [name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)]
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
    fast.prepare(model, config)
    return model.eval()


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(trainable, total) parameters; the frozen copies that peft keeps of what it saves whole are not counted."""
    counted = [(p.requires_grad, p.numel()) for name, p in model.named_parameters() if ".original_module." not in name]
    return sum(n for trains, n in counted if trains), sum(n for _, n in counted)
