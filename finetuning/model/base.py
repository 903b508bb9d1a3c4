"""The pre-trained model and its tokenizer: check them, load them, and add the task's head."""

import copy
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.compute
import torch
from tokenizers import normalizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    set_seed,
)

from config import Config
from finetuning.data.cache import read_column
from finetuning.data.sources import Source
from finetuning.data.tokens import Tokens
from finetuning.errors import UserError, require_installed
from finetuning.model import four_bits
from finetuning.model.architectures import FIRST_POSITIONS, TESTED
from finetuning.speed import attention
from finetuning.speed.precision import on_cpu
from finetuning.task import Task


def read_model_config(task: Task, source: Source, config: Config) -> PretrainedConfig:
    """Return the model's config file.

    Raise `UserError` if transformers can't read it or has no model of its type for the task, if the model can't be used for it, if
    `max_length` exceeds its positions, or if `quantization` needs a package that is not installed.
    """
    try:
        model_config = AutoConfig.from_pretrained(source.path, trust_remote_code=False)
    except Exception as error:  # its values are checked by several libraries, each with its own errors
        raise _not_loaded(source, "model config that transformers can read", error) from error
    if type(model_config) not in task.auto_class._model_mapping:
        model_type = model_config.model_type
        raise UserError(
            f"model_name: {source.name} is of type {model_type}, and transformers has no {config.task} model of this type: "
            "choose another model_name or task"
        )
    is_causal = model_config.is_encoder_decoder or any(getattr(model_config, name, False) for name in ("is_decoder", "causal"))
    if task.auto_class is AutoModelForCausalLM and not (is_causal or _is_decoder(model_config)):
        raise UserError(
            f"model_name: {source.name} is an encoder ({model_config.model_type}): it reads the tokens that {config.task} predicts. "
            "Set model_name to a decoder such as gpt2, or task to masked-lm"
        )
    if task.auto_class is AutoModelForSequenceClassification and model_config.model_type == "xlnet":
        raise UserError(f"model_name: {source.name} is an XLNet, which needs padding before the text: choose another model_name")
    if config.quantization == "4bit":
        require_installed("quantization=4bit", "bitsandbytes")
    positions = getattr(model_config, "max_position_embeddings", None)  # models with relative positions have none
    if positions is not None:
        positions -= FIRST_POSITIONS.get(model_config.model_type, 0)
        if config.max_length > positions:
            raise UserError(f"max_length={config.max_length} exceeds the {positions} positions of {source.name}: lower it")
        task.check_positions(positions, config)
    return model_config


def _is_decoder(model_config: PretrainedConfig) -> bool:
    """Return whether models of this type have no encoder, and read a text from left to right."""
    if model_config.is_encoder_decoder or model_config.model_type == "xlnet":
        return False
    kind = type(model_config)
    return kind in AutoModelForCausalLM._model_mapping and kind not in AutoModelForMaskedLM._model_mapping


def load_tokenizer(task: Task, source: Source, config: Config) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer. It pads on the right, with the end-of-text token if it has no padding token.

    Settings of the run replace what the tokenizer's file says about truncation. Raise `UserError` if it can't be loaded.
    """
    try:
        options = dict(padding_side="right", trust_remote_code=False, **task.tokenizer_options)
        tokenizer = AutoTokenizer.from_pretrained(source.path, **options)
    except Exception as error:  # the library tokenizers raises plain Exceptions
        raise _not_loaded(source, "tokenizer that transformers can load", error) from error
    if isinstance(tokenizer.chat_template, dict):  # named templates; those for tools and the like are not used
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    if task.tokenizer_options.get("add_prefix_space") and tokenizer.is_fast:
        words = tokenizer([["b", "a"]], is_split_into_words=True, add_special_tokens=False)["input_ids"][0]
        if words != tokenizer("b a", add_special_tokens=False)["input_ids"]:  # transformers ignores the option for ModernBERT's
            parts = [normalizers.Prepend(" "), tokenizer.backend_tokenizer.normalizer]
            tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([part for part in parts if part])
    if tokenizer.pad_token is None:  # GPT-2, Llama
        if tokenizer.eos_token is None:
            raise UserError(f"model_name: the tokenizer in {source.path} has neither a padding token nor an end-of-text token")
        tokenizer.pad_token = tokenizer.eos_token
    if "truncation" in task.settings:
        tokenizer.model_max_length = config.max_length
        tokenizer.truncation_side = "left" if config.truncation == "tail" else "right"
    return tokenizer


def _not_loaded(source: Source, what: str, error: Exception) -> UserError:
    """Return the error for a file of the model that transformers did not load. Code in a model's folder is never run."""
    message = " ".join(str(error).split())
    if "trust_remote_code" in message:
        return UserError(
            f"model_name: {source.path} has code of its own (auto_map in its json files), which is never run: use a model of an "
            "architecture that transformers has"
        )
    return UserError(f"model_name: {source.path} has no {what} ({message[:500]}): get a complete copy of the model")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, task: Task, config: Config, folder: Path) -> None:
    """Save the tokenizer. tokenizer.json alone then truncates as the run did, and does not pad."""
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
        if "truncation" in task.settings:
            tokenizer.backend_tokenizer.enable_truncation(config.max_length, direction=tokenizer.truncation_side)
    tokenizer.save_pretrained(str(folder))
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    for name in ("is_local", "local_files_only", "max_length", "pad_to_multiple_of", "stride"):
        settings.pop(name, None)
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def build_base(
    task: Task, source: Source, label_names: list[str], config: Config, train_labels: np.ndarray | None = None
) -> torch.nn.Module:
    """Return the pre-trained model in float32 with the task's head; if its file has no head, a new one is initialised with `seed`.

    With `train_labels`, (rows, ...), the new head starts with the task's `initial_bias`.
    The model maps `input_ids` and `attention_mask`, both (batch, tokens), to `logits`: (batch, labels) if texts have labels. Raise
    `UserError` if weights other than the head's are missing.
    """
    model_config = read_model_config(task, source, config)
    if model_config.pad_token_id is None or _is_decoder(model_config):  # a decoder finds a text's last token by it
        model_config.pad_token_id = load_tokenizer(task, source, config).pad_token_id
    model_config.use_cache = False
    numeric_fields = [name for name, value in model_config.to_dict().items() if type(value) in (float, int)]
    dropouts = [name for name in numeric_fields if "dropout" in name or name.endswith("pdrop")]
    dropouts.append("classifier_dropout")  # some models use 0.1 if it is not set
    layer_dropouts = [name for name in numeric_fields if name.endswith("layerdrop")]
    rates = dict.fromkeys(dropouts, config.dropout) | dict.fromkeys(layer_dropouts, 0.0)
    for name, value in (task.model_settings(label_names) | rates).items():
        setattr(model_config, name, value)
    # Other architectures may pass arguments that our attention does not accept, and layers in 4 bits may mix bf16 and float32.
    known = model_config.model_type in TESTED and config.quantization == "none"
    use_our_attention = config.speedups and on_cpu() and known and attention.has_sdpa(task.auto_class, model_config)
    set_seed(config.seed)
    try:
        model = load(
            task,
            source.path,
            config=model_config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            quantization_config=four_bits.four_bits(config) if config.quantization == "4bit" else None,
            attn_implementation=attention.ATTENTION if use_our_attention else None,
        )
    except Exception as error:  # damaged weights, or values in config.json that do not fit together
        raise _not_loaded(source, "weights that transformers can load", error) from error
    if config.quantization == "4bit":
        four_bits.keep_layout(model)
    if invented := sorted(name for name in model.missing_weights if _is_pretrained(name, model)):
        raise UserError(
            f"model_name: the weights in {source.path} do not fit its config.json: {invented[0]} is missing or has another size "
            f"({len(invented)} of these in all); get a complete copy of the model"
        )
    if train_labels is not None and (bias := task.initial_bias(train_labels, config)) is not None:
        new = [(name, parameter) for name, parameter in model.named_parameters() if name in model.missing_weights]
        fitting = [parameter for name, parameter in new if name.endswith("bias") and parameter.shape == bias.shape]
        for output_bias in fitting[-1:]:  # a decoder has none; another layer of the head may have as many numbers, but comes before
            output_bias.data.copy_(torch.as_tensor(bias))
    return model


def check_vocabulary(model: torch.nn.Module, tokens: Iterable[Tokens]) -> None:
    """Raise `UserError` if the texts have tokens that the model lacks, as after tokens were added to the tokenizer alone."""
    try:
        n_known = len(model.get_input_embeddings().weight)
    except (AttributeError, NotImplementedError):  # CANINE and Perceiver
        return
    columns = [
        read_column(split.inputs, name) for split in tokens for name in ("input_ids", "targets") if name in split.inputs.features
    ]
    largest = max(pyarrow.compute.max(pyarrow.compute.list_flatten(column)).as_py() or 0 for column in columns)
    if largest >= n_known:
        raise UserError(
            f"model_name: the tokenizer writes token {largest}, but the model has only {n_known} tokens: use the tokenizer that belongs "
            "to the model, or save the model again after resize_token_embeddings"
        )


def _is_pretrained(name: str, model: torch.nn.Module) -> bool:
    """Return whether a weight must be in a model's file.

    Only the head and BERT's pooler may be missing, because both are trained.
    """
    prefix = model.base_model_prefix
    return model.base_model is model or (name.startswith(f"{prefix}.") and not name.startswith(f"{prefix}.pooler."))


def load(task: Task, path: str | Path, **options) -> torch.nn.Module:
    """Return a model of the task's class.

    Its attribute `missing_weights` names the weights that the file in `path` lacks, or has with another size. They are new.
    """
    model, info = task.auto_class.from_pretrained(path, output_loading_info=True, trust_remote_code=False, **options)
    model.missing_weights = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    return task.adapt(model)
