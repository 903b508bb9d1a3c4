"""CTranslate2 instead of a translation model, to write the export `ctranslate2` and to compare it with the run's model."""

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from finetuning.errors import UserError


class CTranslate2(torch.nn.Module):
    """A model converted for CTranslate2. It has the two methods of the task's model that prediction calls."""

    device = torch.device("cpu")

    def __init__(self, merged: Path, folder: Path, tokenizer: PreTrainedTokenizerBase, quantization: str = "float32") -> None:
        """Convert the merged model into `folder`. Raise `UserError` if CTranslate2 does not support its architecture."""
        import ctranslate2  # optional

        super().__init__()
        try:
            ctranslate2.converters.TransformersConverter(str(merged)).convert(str(folder), quantization=quantization)
        except (AttributeError, ValueError) as error:
            raise UserError(f"CTranslate2 does not support this model ({error}): remove ctranslate2 from --formats") from error
        self.tokenizer = tokenizer
        self.translator = ctranslate2.Translator(str(folder), compute_type=quantization, intra_threads=torch.get_num_threads())

    def generate(self, input_ids, attention_mask, num_beams, max_new_tokens, forced_bos_token_id=None, **_) -> list[list[int]]:
        """Return the token ids of each row's translation."""
        prefixes = None
        if forced_bos_token_id is not None:
            prefixes = [self.tokenizer.convert_ids_to_tokens([forced_bos_token_id])] * len(input_ids)
        results = self.translator.translate_batch(
            self._tokens(input_ids, attention_mask.bool()),
            target_prefix=prefixes,
            beam_size=num_beams,
            max_decoding_length=max_new_tokens,
        )
        return [self.tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in results]

    def forward(self, input_ids, attention_mask, targets, labels=None) -> dict[str, torch.Tensor]:
        """Return the targets' scores, (rows, 3), as in `Translation.adapt`. The mean over the vocabulary is not computed: 0."""
        mask = targets >= 0
        mask_without_end = mask & (targets != self.tokenizer.eos_token_id)
        results = self.translator.score_batch(
            self._tokens(input_ids, attention_mask.bool()), self._tokens(targets, mask_without_end)
        )
        sums = torch.tensor([[sum(result.log_probs), 0.0] for result in results], device=mask.device)
        return {"logits": torch.cat([sums, mask.sum(dim=1, keepdim=True)], dim=1)}

    def _tokens(self, rows: torch.Tensor, mask: torch.Tensor) -> list[list[str]]:
        """Return the tokens of each row where `mask` is true. `rows` and `mask` have shape (rows, tokens)."""
        return [self.tokenizer.convert_ids_to_tokens(row[kept].tolist()) for row, kept in zip(rows, mask, strict=True)]
