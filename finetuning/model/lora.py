"""LoRA: a frozen layer, and beside it a small trained update (arXiv 2106.09685).

              x  (tokens, inputs)
              |
        +-----+-------+
        |             |
        |             A  (r, inputs)         trained, random at the start
        |             |
     W, bias          |  (tokens, r)         r is small: 16
     frozen           |
        |             B  (outputs, r)        trained, zero at the start: nothing changes at first
        |             |
        |         * alpha / r
        |             |
        +----- + -----+
              |
              y  (tokens, outputs)

peft builds this around the layers that `target_modules` names. `LoraLayer` below is the same in plain PyTorch, to read and to
try out; a test compares it with peft's layer. All weights of the new head are trained.
"""

from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, prepare_model_for_kbit_training
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, ModulesToSaveWrapper
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

from config import Config
from finetuning import speed
from finetuning.errors import UserError
from finetuning.model.architectures import target_modules
from finetuning.task import Task


class LoraLayer(torch.nn.Module):
    """y = x Wᵀ + bias + (alpha / r) (x Aᵀ) Bᵀ, where only A and B are trained."""

    def __init__(self, linear: torch.nn.Linear, r: int, alpha: int) -> None:
        super().__init__()
        self.linear, self.scaling = linear.requires_grad_(False), alpha / r
        self.A = torch.nn.Parameter(torch.empty(r, linear.in_features))
        self.B = torch.nn.Parameter(torch.zeros(linear.out_features, r))
        torch.nn.init.kaiming_uniform_(self.A, a=5**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.scaling * (x @ self.A.T) @ self.B.T


def add_lora(task: Task, base: torch.nn.Module, config: Config) -> PeftModel:
    """Freeze `base`, add LoRA to its target modules, make its head trainable, and apply the speedups for this machine.

    With the methods "full" and "head" the result is a peft model without LoRA. So all methods are saved and loaded in the same way.
    """
    trained = _fully_trained_modules(base, config)
    lora_config = LoraConfig(
        task_type=task.peft_type,
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=target_modules(base, config.target_modules, trained) if config.method == "lora" else DUMMY_TARGET_MODULES,
        modules_to_save=trained,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),  # GPT-2's weights are transposed
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights=config.init_lora_weights == "default" or config.init_lora_weights,
    )
    if config.quantization == "4bit":
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    model = get_peft_model(base, lora_config)
    if config.method == "full":
        _drop_frozen_copy(base)
    if config.method == "full" or config.train_embeddings:
        _tie_weights(model)
        _keep_padding_zero(base)
    speed.prepare(model, config)
    return model


def load_adapter(base: torch.nn.Module, adapter: Path, config: Config) -> PeftModel:
    """Add a saved adapter and its head to `base`. The returned model is the one that training ended with.

    Raise `UserError` if peft can't load it, or if weights are missing, left over, NaN or infinite.
    """
    try:
        model = PeftModel.from_pretrained(base, str(adapter), is_trainable=True)
        saved = load_file(adapter / SAFETENSORS_WEIGHTS_NAME).keys()
    except Exception as error:  # damaged files have errors of several libraries
        raise UserError(f"{adapter}: peft can't load it ({str(error)[:500]}); restore it, or train again") from error
    if differing := saved ^ get_peft_model_state_dict(model, save_embedding_layers=False).keys():
        raise UserError(
            f"{adapter}: {min(differing)} does not fit {CONFIG_NAME}: restore both, or train again; if add_lora was changed to use "
            "layers of another class, load_adapter must use them too"
        )
    check_finite(model, adapter)
    if config.method == "full" or config.train_embeddings:
        _tie_weights(model)
    speed.prepare(model, config)
    return model.eval()


def check_finite(model: torch.nn.Module, folder: Path) -> None:
    """Raise `UserError` if a trained weight is NaN or infinite. `folder` is the folder of the weights."""
    trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    if name := next((name for name, parameter in trained if not parameter.isfinite().all()), None):
        raise UserError(f"{folder}: {name} has NaN or infinite numbers: train again, with a lower learning_rate or in float32")


def count_parameters(model: PeftModel) -> tuple[int, int]:
    """Return the numbers of (trainable, all) parameters. Frozen copies that peft keeps of fully trained modules do not count."""
    trainable, total = model.get_nb_trainable_parameters()
    return trainable, total - sum(p.numel() for name, p in model.named_parameters() if ".original_module." in name)


# --- modules with all weights trained: peft's modules_to_save ------------------------------------------------------------------


def _fully_trained_modules(base: torch.nn.Module, config: Config) -> list[str]:
    """Return the names of the modules whose weights are all trained and saved: the head, or with "full" every module."""
    encoder, is_language_model = base.base_model, base.get_output_embeddings() is not None
    names = [] if encoder is base else [*_heads(base, encoder, _tied_output_layer(base))]  # T5's class is its own base model
    if config.method == "full" and encoder is base:
        names = [name for name, _ in base.named_children()]
    elif config.method == "full":  # peft compares the ends of names; a classifier's names begin with base_model.model
        names.append(base.base_model_prefix if is_language_model else f".model.{base.base_model_prefix}")
    elif is_language_model:  # a head that the model's file has stays frozen
        names = [name for name in names if any(weight.startswith(f"{name}.") for weight in base.missing_weights)]
    elif getattr(encoder, "pooler", None) is not None:
        names.append("pooler")  # BERT's: if frozen, it saturates, and training fails at learning rate 2e-3
    if config.train_embeddings:
        names += [name for name in _embeddings(base) if not any(f"{name}.".startswith(f"{other}.") for other in names)]
    return names


def _heads(
    module: torch.nn.Module, encoder: torch.nn.Module, output_layer: torch.nn.Module | None, prefix: str = ""
) -> Iterator[str]:
    """Yield the names of the largest modules that have parameters and contain neither `encoder` nor the tied `output_layer`."""
    for name, child in module.named_children():
        if child is encoder or child is output_layer or not any(True for _ in child.parameters()):
            continue
        if output_layer is not None and any(part is output_layer for part in child.modules()):
            yield from _heads(child, encoder, output_layer, f"{prefix}{name}.")
        else:
            yield prefix + name


def _tied_output_layer(base: torch.nn.Module) -> torch.nn.Module | None:
    """Return a language model's output layer if it shares its weights with the embeddings, else None."""
    return base.get_output_embeddings() if base.config.get_text_config().tie_word_embeddings else None


def _embeddings(base: torch.nn.Module) -> list[str]:
    """Return the names of the word embeddings and the output layer. peft copies tied ones twice; `_tie_weights` ties the copies."""
    tied = {
        name.removesuffix(".weight") for pair in base.all_tied_weights_keys.items() for name in pair if name.endswith(".weight")
    }
    layers = (base.get_input_embeddings(), base.get_output_embeddings())
    return [name for name, module in base.named_modules() if name in tied or any(module is layer for layer in layers)]


def _drop_frozen_copy(base: torch.nn.Module) -> None:
    """Delete the frozen copy that peft keeps of a model whose weights are all trained."""
    for name, module in base.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and (base.base_model is base or name == base.base_model_prefix):
            module.original_module = None
    for name in base._keys_to_ignore_on_save or []:  # Marian's position embeddings, which are computed and not saved
        _trained_part(base, name).requires_grad = False


def _tie_weights(model: PeftModel) -> None:
    """Tie the weights of peft's trained copies that are tied in the base model."""
    base = model.get_base_model()
    for tied_name, weight_name in base.all_tied_weights_keys.items():
        module_name, parameter_name = tied_name.rpartition(".")[::2]
        setattr(_trained_part(base, module_name), parameter_name, _trained_part(base, weight_name))


def _keep_padding_zero(base: torch.nn.Module) -> None:
    """Keep the embedding of the padding token at zero if it is zero. Without this, a tied output layer would change it.

    Marian's decoder begins with this embedding, and other programs rely on the zeros.
    """
    for module in base.modules():
        trainable = isinstance(module, torch.nn.Embedding) and module.weight.requires_grad
        if trainable and module.padding_idx is not None and not module.weight[module.padding_idx].any():
            row = torch.tensor([module.padding_idx])
            module.weight.register_hook(lambda gradient, row=row: gradient.index_fill(0, row.to(gradient.device), 0))


def _trained_part(base: torch.nn.Module, name: str) -> torch.nn.Module | torch.nn.Parameter:
    """Return a module or parameter by its name in `base`; if peft trains a copy of it, the copy."""
    part = attrgetter(name)(base)  # peft's wrappers pass on the attributes of the trained copy
    return part.modules_to_save["default"] if isinstance(part, ModulesToSaveWrapper) else part
