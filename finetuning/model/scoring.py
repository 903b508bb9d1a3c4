"""Make a language model return the log-likelihood of given tokens instead of logits over the vocabulary."""

import functools
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import MaskedLMOutput


def log_likelihood(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the natural log-likelihood of each target, shape (n, 1); `logits` (n, vocabulary), `targets` (n,)."""
    return -cross_entropy(logits, targets, reduction="none")[:, None]


def scoring(
    model: torch.nn.Module,
    backbone: torch.nn.Module,
    scores_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = log_likelihood,
    inputs_of: Callable[[torch.Tensor], dict] = lambda targets: {},
) -> torch.nn.Module:
    """Change `model` so that a batch with `targets` (rows, tokens) gets sums of scores as its `logits`, and return it.

    These have shape (rows, k + 1): k scores, summed over the row's targets, and the number of targets. Targets are token ids, or
    -100 where there is no target. `backbone` is the part of the model whose `last_hidden_state` the head reads.
    `scores_of` maps (logits (n, vocabulary), targets (n,)) to scores (n, k). `inputs_of` maps targets to more inputs of the model.

    The head computes logits only where there is a target. So a tensor of shape (all tokens, vocabulary) is never in memory.
    """
    forward = model.forward

    @functools.wraps(forward)
    def forward_with_targets(*args, targets: torch.Tensor | None = None, labels: torch.Tensor | None = None, **inputs):
        if targets is None:
            return forward(*args, **inputs)
        mask = targets >= 0

        def keep_targets(_, __, output):
            output.last_hidden_state = output.last_hidden_state[mask][None]
            return output

        with backbone.register_forward_hook(keep_targets):
            logits = forward(*args, **(inputs | inputs_of(targets))).logits
        # OPT's head reads a part of its backbone, so the hook does not run.
        logits = logits[mask] if logits.shape[:2] == mask.shape else logits[0]
        scores = scores_of(logits.float(), targets[mask])
        sums = scores.new_zeros(len(targets), scores.shape[1]).index_add(0, mask.nonzero()[:, 0], scores)
        return MaskedLMOutput(logits=torch.cat([sums, mask.sum(dim=1, keepdim=True).to(sums.dtype)], dim=1))

    model.forward = forward_with_targets
    return model
