"""LoRA: a frozen layer and, beside it, a small update that is trained (arXiv 2106.09685).

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
try out; a test compares it with peft's. The head, which is new, is trained as a whole.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import DUMMY_TARGET_MODULES
from transformers.pytorch_utils import Conv1D

from config import Config
from finetuning import speed
from finetuning.model.architectures import target_modules
from finetuning.task import Task


class LoraLayer(torch.nn.Module):
    """y = x W' + bias + (alpha / r) (x A') B', where only A and B are trained."""

    def __init__(self, linear: torch.nn.Linear, r: int, alpha: int) -> None:
        super().__init__()
        self.linear, self.scaling = linear.requires_grad_(False), alpha / r
        self.A = torch.nn.Parameter(torch.empty(r, linear.in_features))
        self.B = torch.nn.Parameter(torch.zeros(linear.out_features, r))
        torch.nn.init.kaiming_uniform_(self.A, a=5**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.scaling * (x @ self.A.T) @ self.B.T


def add_lora(task: Task, base: torch.nn.Module, config: Config) -> PeftModel:
    """Freeze `base`, add LoRA to its target modules, let its head be trained, and make it fast on this machine.

    The methods "full" and "head" are peft models without LoRA, so that all are saved and loaded in the same way.
    """
    lora_config = LoraConfig(
        task_type=task.peft_type,
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=target_modules(base, config.target_modules) if config.method == "lora" else DUMMY_TARGET_MODULES,
        modules_to_save=_trained_as_a_whole(base, config),
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
    """Put a saved adapter, head included, onto `base`; the model is as it was when training ended."""
    model = PeftModel.from_pretrained(base, str(adapter), is_trainable=True)
    if config.method == "full" or config.train_embeddings:
        _tie_weights(model)
    speed.prepare(model, config)
    return model.eval()


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Return (trainable, total) parameters, without the frozen copies that peft keeps of modules that are trained as a whole."""
    counts = [(p.requires_grad, p.numel()) for name, p in model.named_parameters() if ".original_module." not in name]
    return sum(n for trainable, n in counts if trainable), sum(n for _, n in counts)


# --- modules that are trained as a whole: peft's modules_to_save ---------------------------------------------------------------


def _trained_as_a_whole(base: torch.nn.Module, config: Config) -> list[str]:
    """Return the names of the modules that are trained and saved as a whole: the head; with "full" everything."""
    encoder, scores_words = base.base_model, base.get_output_embeddings() is not None
    names = [] if encoder is base else [*_heads(base, encoder, _tied_output_layer(base))]  # T5's parts are those of the model
    if config.method == "full" and encoder is base:
        names = [name for name, _ in base.named_children()]
    elif config.method == "full":  # peft looks for endings; a classifier's names begin with base_model.model
        names.append(base.base_model_prefix if scores_words else f".model.{base.base_model_prefix}")
    elif scores_words:  # a head that is in the model's file stays as it is
        names = [name for name in names if any(weight.startswith(f"{name}.") for weight in base.missing_weights)]
    elif getattr(encoder, "pooler", None) is not None:
        names.append("pooler")  # BERT's: a frozen one saturates, no training at learning rate 2e-3
    if config.train_embeddings:
        names += [name for name in _embeddings(base) if not any(f"{name}.".startswith(f"{other}.") for other in names)]
    return names


def _heads(
    module: torch.nn.Module, encoder: torch.nn.Module, output_layer: torch.nn.Module | None, prefix: str = ""
) -> Iterator[str]:
    """Yield the names of the largest modules with parameters outside `encoder` and the tied `output_layer`."""
    for name, child in module.named_children():
        if child is encoder or child is output_layer or not any(True for _ in child.parameters()):
            continue
        if output_layer is not None and any(part is output_layer for part in child.modules()):
            yield from _heads(child, encoder, output_layer, f"{prefix}{name}.")
        else:
            yield prefix + name


def _tied_output_layer(base: torch.nn.Module) -> torch.nn.Module | None:
    """Return a language model's output layer if its weights are those of the embeddings."""
    return base.get_output_embeddings() if base.config.get_text_config().tie_word_embeddings else None


def _embeddings(base: torch.nn.Module) -> list[str]:
    """Return the names of the word embeddings and the output layer. peft copies tied ones each; `_tie_weights` ties the copies."""
    tied = {name.rpartition(".")[0] for pair in base.all_tied_weights_keys.items() for name in pair}
    layers = (base.get_input_embeddings(), base.get_output_embeddings())
    return [name for name, module in base.named_modules() if name in tied or any(module is layer for layer in layers)]


def _drop_frozen_copy(base: torch.nn.Module) -> None:
    """Free the frozen copy that peft keeps of a model that is trained as a whole."""
    for name, module in base.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and (base.base_model is base or name == base.base_model_prefix):
            module.original_module = None
    for name in base._keys_to_ignore_on_save or []:  # Marian's positions, which are computed and not saved
        _trained_part(base, name).requires_grad = False


def _tie_weights(model: PeftModel) -> None:
    """Let weights that are tied in the base model be tied in peft's trained copies too."""
    base = model.get_base_model()
    for tied, weight in base.all_tied_weights_keys.items():
        module, name = tied.rpartition(".")[::2]
        setattr(_trained_part(base, module), name, _trained_part(base, weight))


def _keep_padding_zero(base: torch.nn.Module) -> None:
    """Keep a padding embedding that is zero at zero. Marian's decoder begins with it, and other programs rely on it; a tied output
    layer would change it."""
    for module in base.modules():
        trainable = isinstance(module, torch.nn.Embedding) and module.weight.requires_grad
        if trainable and module.padding_idx is not None and not module.weight[module.padding_idx].any():
            row = torch.tensor([module.padding_idx])
            module.weight.register_hook(lambda gradient, row=row: gradient.index_fill(0, row.to(gradient.device), 0))


def _trained_part(base: torch.nn.Module, name: str) -> torch.nn.Module | torch.nn.Parameter:
    """Return a module or parameter by its name in `base`, from the copies that peft trains."""

    def trained(module):
        return module.modules_to_save["default"] if isinstance(module, ModulesToSaveWrapper) else module

    part = trained(base)
    for step in name.split("."):
        part = trained(getattr(part, step))
    return part
