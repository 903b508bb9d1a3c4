"""A decoder continues texts in the style of its training texts. If the data hold prompts and answers, the task is that of chat.py."""

from collections.abc import Collection, Iterator
from dataclasses import replace

from datasets import Dataset, Features, Value
from peft import TaskType
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from config import Config
from finetuning.data.chats import find_chat_columns
from finetuning.data.text import TEXT_COLUMNS, find_column
from finetuning.data.tokens import start_token
from finetuning.errors import UserError
from finetuning.model.generation import continue_text
from finetuning.results.report import Example
from finetuning.task import Task
from finetuning.tasks.chat import Chat
from finetuning.tasks.language_model import LanguageModel, token_ids
from finetuning.training.prediction import Predictor

PROMPT_TOKENS = 24  # tokens at the start of a document that the model continues for the report page


class CausalLM(LanguageModel):
    """A model that predicts each token from the tokens before it, and continues texts in the style of its training texts.

    A document begins with the tokenizer's token for the start of a text and ends with the one for its end. A block begins with the
    last token of the block before, so each token is predicted once.
    """

    name = "causal-lm"
    pipeline_tag = "text-generation"
    auto_class = AutoModelForCausalLM
    peft_type = TaskType.CAUSAL_LM
    options = dict(max_new_tokens=60, temperature=0.8, top_p=0.95, seed=0)
    answer_features = Features({"continuation": Value("string")})
    examples = ("This film", "The worst thing about it is", "I had never heard of the director, but")
    code_template = "causal-lm.py.jinja"
    widgets = (("text", "The text and its continuation"),)
    settings = Chat.settings  # the data decide between the two
    samples_title = ("Continuations", "Sampled with predict.py's default options. Open a line to see the actual continuation.")

    def fits(self, config: Config) -> bool:
        return super().fits(config) and config.prompt_column is None

    def settle(self, train: Dataset, config: Config, given: Collection[str] = ()) -> tuple[Task, Config]:
        """Return this task if a column of texts is named or if there are no prompts; else the task for prompts and answers."""
        columns = find_chat_columns(train.column_names, config)
        if config.text_column or not columns:
            if unread := sorted({"completion_column", "completion_only_loss", "max_new_tokens"} & {*given}):
                raise UserError(
                    f"{unread[0]} is for prompts and answers: set prompt_column to the column of the prompts, or leave it out"
                )
            if not config.text_column:  # no column may have a usual name
                find_column("text_column, or prompt_column and completion_column,", None, TEXT_COLUMNS, train.column_names)
            return self, config
        config = replace(config, prompt_column=columns["prompt"], completion_column=columns.get("completion"))
        Chat().check(config, given)
        return Chat(), config

    def blocks(self, ids: list[int], tokenizer: PreTrainedTokenizerBase, config: Config) -> Iterator[tuple[list[int], list[int]]]:
        """Yield the token ids of each block, and their targets: the next tokens. It begins with the last token of the block before."""
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"task=causal-lm: the tokenizer of {config.model_name} has no token for the end of a text: set model_name to a decoder "
                "such as gpt2, or set task to masked-lm"
            )
        ids = [start_token(tokenizer), *ids, tokenizer.eos_token_id]
        for start in range(0, len(ids) - 1, config.max_length - 1):
            block = ids[start : start + config.max_length]
            yield block, [*block[1:], -100]

    # --- results ---------------------------------------------------------------------------------------------------------

    def samples(self, predictor: Predictor, rows: list[int], texts: list[str]) -> list[dict]:
        """Return the beginnings of some documents, with the continuations by the model and the actual ones."""
        samples, tokenizer = [], predictor.tokenizer
        for row, ids in zip(rows, token_ids(texts, tokenizer), strict=True):
            n = min(PROMPT_TOKENS, len(ids) // 2)
            prompt, actual = (tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:n], ids[n : 3 * PROMPT_TOKENS]))
            (continuation,) = self.answers(predictor, {"text": [prompt]})["continuation"]
            samples.append({"row": row, "prompt": prompt, "model": continuation, "actual": actual})
        return samples

    def as_example(self, sample: dict) -> Example:
        sides = (("the model", sample["model"]), ("the document", sample["actual"]))
        return Example(f"row {sample['row']}: {sample['prompt']} …", sides=sides)

    def remark(self, metrics: dict) -> str:
        return (
            "Perplexity is per token of this model, so it can't be compared between tokenizers. Documents were read in blocks of "
            f"{metrics['run']['config']['max_length']} tokens. No block has tokens of two documents. Each token is predicted once."
        )

    # --- use -------------------------------------------------------------------------------------------------------------

    def answers(self, predictor: Predictor, batch: dict[str, list]) -> dict[str, list]:
        """Return the `continuation` of each prompt. It does not depend on the other prompts, because each is read alone."""
        model, tokenizer, options = predictor.model, predictor.tokenizer, self.options | predictor.options
        prompts = [[start_token(tokenizer), *ids] for ids in token_ids(batch["text"], tokenizer)]
        return {"continuation": [continue_text(model, tokenizer, prompt, options) for prompt in prompts]}

    def as_line(self, inputs: dict[str, str], answer: dict, label_names: list[str]) -> str:
        return inputs["text"] + answer["continuation"]

    def widget_values(self, predictor: Predictor, text: str) -> list:
        (continuation,) = self.answers(predictor, {"text": [text]})["continuation"]
        return [text + continuation]

    def pipeline(self, config: Config) -> tuple[str, str]:
        return "", "It samples with its own settings, and does not put the token for the start of a text before the prompt."
