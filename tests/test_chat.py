"""Prompts and answers: conversations, the tokens that the loss counts, answers and their metrics."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import CHAT_TEMPLATE as TEMPLATE
from conftest import make_model, write_lines
from datasets import Dataset
from sacrebleu.metrics import BLEU
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel

from config import Config
from finetuning import tasks
from finetuning.data import chat_tokens, chats
from finetuning.data.splits import load_data
from finetuning.data.tokens import Tokens
from finetuning.errors import UserError
from finetuning.results import answers, report
from finetuning.results.run_folder import open_run
from finetuning.speed import greedy_search
from finetuning.tasks import chat
from finetuning.training.prediction import Predictor
from finetuning.use.predicting import load_engine

TURNS = [("user", "a film"), ("assistant", "a plot"), ("user", "long"), ("assistant", "loud and long")]


def say(*turns: tuple[str, str]) -> chats.Messages:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models") / "tiny-plain", "llama")


@pytest.fixture
def tokenizer(chat_model):
    return transformers.AutoTokenizer.from_pretrained(chat_model)


@pytest.fixture
def tokenizer_of_bytes():
    """Return a tokenizer with a token for each byte, so that a character can have several."""
    backend = Tokenizer(models.BPE({character: i for i, character in enumerate(sorted(ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]", pad_token="[PAD]")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}[SEP]{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return tokenizer


# --- rows ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a film", "completion": "great"},
        {"Prompt": "a film", "Response": " great\n"},
        {"meaning_representation": "a film", "human_reference": "great"},
        {"instruction": "a film", "input": "", "output": "great", "text": "a film great"},
        {"messages": [{"role": "user", "content": "a film"}, {"role": "assistant", "content": "great"}]},
        {"messages": json.dumps([{"role": "user", "content": "a film"}, {"role": "assistant", "content": "great"}])},
        {
            "messages": str([{"role": "user", "content": "a film"}, {"role": "assistant", "content": "great"}])
        },  # as pandas writes it
        {"conversations": [{"from": "human", "value": "a film"}, {"from": "gpt", "value": "great"}]},
        {"instruction": "a film", "input": " ", "output": "great"},
        {"prompt": [{"role": "user", "content": "a film"}], "completion": [{"role": "assistant", "content": "great"}]},
    ],
)
def test_the_usual_forms_of_a_row_give_the_same_conversation(row):
    columns = chats.find_chat_columns([*row], Config(task="causal-lm"))
    assert chats.conversation({name: row[column] for name, column in columns.items()}) == say(
        ("user", "a film"), ("assistant", "great")
    )


def test_a_named_column_is_completed_by_one_with_a_usual_name():
    def found(available, **settings):
        return chats.find_chat_columns(available, Config(task="causal-lm", **settings))

    assert found(["prompt", "answer"], completion_column="answer") == {"prompt": "prompt", "completion": "answer"}
    assert found(["question", "output"], prompt_column="question") == {"prompt": "question", "completion": "output"}
    with pytest.raises(UserError, match="set prompt_column to one of them"):
        found(["question", "answer"], completion_column="answer")


@pytest.mark.parametrize(
    "available",
    [
        ["conversations", "instruction", "response"],  # Magpie
        ["Messages", "output", "system"],
        ["prompt", "response", "completion"],
        ["instruction", "context", "response"],
    ],
)
def test_settings_that_name_the_columns_that_were_found_find_the_same(available):
    config = Config(task="causal-lm")
    found = chats.find_chat_columns(available, config)
    _, settled = tasks.pick(config).settle(Dataset.from_dict(dict.fromkeys(available, [])), config)
    assert chats.find_chat_columns(available, settled) == found


def test_columns_without_usual_names_need_a_setting():
    config, rows = Config(task="causal-lm"), Dataset.from_dict({"question": [], "answer": []})
    with pytest.raises(UserError, match="set text_column, or prompt_column and completion_column, to one of them"):
        tasks.pick(config).settle(rows, config)


def test_json_that_is_no_conversation_is_a_text():
    text = json.dumps([{"name": "a"}])
    assert chats.conversation({"prompt": "a", "completion": text})[1]["content"] == text


@pytest.mark.parametrize(
    ("row", "expected", "unread"),
    [
        ({"instruction": "count", "input": "a b"}, [("user", "count\n\na b")], []),
        ({"instruction": "count", "context": "a b", "category": "qa"}, [("user", "count\n\na b")], []),  # Dolly
        ({"instruction": None, "input": "count a b"}, [("user", "count a b")], []),
        ({"instruction": "count", "context": "c", "input": "a b"}, [("user", "count\n\na b")], ["context"]),
        ({"prompt": "count", "context": "c", "history": [["a", "b"]]}, [("user", "count")], ["context", "history"]),
        ({"prompt": "count", "system": " Be brief. "}, [("system", "Be brief."), ("user", "count")], []),
        ({"prompt": "count", "System_Prompt": None}, [("user", "count")], []),
        ({"messages": say(("user", "count")), "system": "wise"}, [("system", "wise"), ("user", "count")], []),
        ({"messages": say(("user", "count")), "conversations": []}, [("user", "count")], ["conversations"]),
        ({"messages": say(("system", "wise"), ("user", "count")), "system": "wise"}, [("system", "wise"), ("user", "count")], []),
    ],
)
def test_columns_that_belong_to_a_prompt_are_read_or_named(row, expected, unread):
    row = row if "messages" in row else row | {"response": "2"}
    columns = chats.find_chat_columns([*row], Config(task="causal-lm"))
    messages = chats.conversation({name: row[column] for name, column in columns.items()})
    assert [message for message in messages if message["role"] != "assistant"] == say(*expected)
    assert chats.unread_columns(columns, [*row]) == unread


def test_the_columns_that_are_read_are_printed(tmp_path):
    rows = [{"instruction": f"a {i}", "context": "b", "response": "c", "history": []} for i in range(40)]
    config = Config(task="causal-lm", dataset_name=str(write_lines(tmp_path / "rows.jsonl", rows)))
    (remark,) = load_data(tasks.pick(config), config).remarks
    assert remark.startswith("prompts and answers are read from instruction, response, context, but not from history: ")


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"input": 1}, "its input is a number, which is no text"),
        ({"system": 1}, "its system is a number, which is no text"),
        ({"prompt": say(("system", "a"), ("user", "b")), "system": "c"}, "its column of the system differs from"),
        ({"completion": [{"role": "assistant", "content": "2", "weight": 0}]}, "an answer has the weight 0"),
        ({"completion": [{"role": "assistant", "content": "2", "train": False}]}, "an answer has the train False"),
        (
            {"completion": [{"role": "assistant", "content": "2", "tool_calls": [{"id": 1}]}]},
            "an answer has tool_calls, but only its content",
        ),
        (
            {"completion": [{"role": "assistant", "content": "2", "thinking": "1 + 1"}]},
            "an answer has thinking, but only its content",
        ),
    ],
)
def test_more_of_a_prompt_that_can_not_be_read_is_refused(more, problem):
    with pytest.raises(ValueError, match=problem):
        chats.conversation({"prompt": "count", "completion": "2"} | more)


def test_weights_of_prompts_do_not_matter():
    prompt = [{"from": "human", "value": "count", "weight": 0.0}, {"from": "gpt", "value": "2", "weight": 1.0}]  # SlimOrca
    assert chats.conversation({"prompt": prompt}) == say(("user", "count"), ("assistant", "2"))


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ([{"role": "tool", "content": "x"}], "the role 'tool' is not known, only system, user, assistant, human, gpt"),
        ([{"role": "assistant", "content": "x"}], "roles are out of order: assistant where user should come"),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": "y"}], "user where assistant should come"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "system where assistant should come"),
        ([{"role": "user", "content": ["x"]}], "the content of a message is a list of texts, which is no text"),
        ([{"speaker": "user", "text": "x"}], "a message has the keys speaker, text"),
        (["x"], "its prompt is a list of texts, which is neither a text nor a list of messages"),
        ([{"role": ["user"], "content": "x"}], "the role ['user'] is not known"),
    ],
)
def test_a_row_without_a_conversation_is_refused_with_its_number(prompt, problem, call, chat_flags, tmp_path):
    good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(ValueError, match=re.escape(problem)):
        chats.conversation({"prompt": prompt})
    if problem.startswith("the role"):  # one of them as a user meets it
        write_lines(tmp_path / "rows.jsonl", [{"messages": good}, {"messages": prompt}] * 8)
        refused = call("fine_tune.py", *chat_flags)
        assert refused.code == 2 and f"8 of 16 rows of split train can't be used: {problem}" in refused.err
        assert "(row 1, 3, 5, 7, 9, ...): correct them, or set on_bad_rows to skip" in refused.err


def test_a_damaged_conversation_in_a_csv_file_is_not_called_empty(call, chat_flags, tmp_path):
    good = json.dumps(say(("user", "a film"), ("assistant", "great")))
    for damaged in (good[:-5], good.replace("content", "text")):
        pd.DataFrame({"messages": [good] * 20 + [damaged]}).to_csv(tmp_path / "rows.csv", index=False)
        refused = call("fine_tune.py", *chat_flags, "--dataset_name", "rows.csv")
        assert (
            refused.code == 2
            and "1 of 21 rows of split train can't be used: its text is no list of messages in JSON" in refused.err
        )
        assert "(row 20)" in refused.err


def test_an_empty_answer_within_a_conversation_is_refused():
    with pytest.raises(ValueError, match=r"its message 2 \(assistant\) is empty"):
        chats.conversation({"prompt": say(("user", "a"), ("assistant", " "), ("user", "b"), ("assistant", "c"))})
    assert len(chats.conversation({"prompt": say(("system", ""), ("user", "a"), ("assistant", ""))})) == 3


def test_empty_prompts_and_answers_are_refused_or_left_out(call, chat_flags, tmp_path):
    rows = [{"prompt": "" if i == 5 else f"a film {i}", "completion": "" if i == 3 else "great"} for i in range(40)]
    write_lines(tmp_path / "rows.jsonl", rows)
    refused = call("fine_tune.py", *chat_flags)
    assert refused.code == 2 and "2 of 40 rows of split train with an empty prompt or answer (row 3, 5)" in refused.err
    skipped = call("fine_tune.py", *chat_flags, "--on_bad_rows", "skip")
    assert skipped.code == 0 and "2 of 40 rows of split train with an empty prompt or answer" in skipped.out, skipped.out


def test_all_weights_can_be_trained_in_the_precision_of_this_machine(call, chat_flags):
    trained = call("fine_tune.py", *chat_flags, "--method", "full", "--learning_rate", 1e-3)
    assert trained.code == 0, trained.err


def test_a_named_column_of_texts_is_read_as_documents(call, chat_flags, tmp_path):
    rows = [{"instruction": "a film", "output": "great", "text": f"a film great {i}"} for i in range(40)]
    write_lines(tmp_path / "rows.jsonl", rows)
    position = chat_flags.index("--max_new_tokens")
    refused = call("fine_tune.py", *chat_flags, "--text_column", "text")
    assert refused.code == 2 and "max_new_tokens" in refused.err, "documents have no answers, and so no length of them"
    assert call("fine_tune.py", *chat_flags[:position], *chat_flags[position + 2 :], "--text_column", "text").code == 0
    assert open_run(Path("outputs/run"), tasks.pick).task is tasks.pick(Config(task="causal-lm"))


# --- tokens --------------------------------------------------------------------------------------------------------------


def trained(messages, tokenizer, **settings) -> tuple[str, str]:
    """Return the tokens of a training example as text, and those that the loss counts."""
    example = chat_tokens.encode(messages, tokenizer, Config(task="causal-lm", **settings))
    counted = [target for target in example["targets"] if target >= 0]
    assert all(target in (-100, token) for token, target in zip([*example["input_ids"][1:], -100], example["targets"], strict=True))
    return tokenizer.decode(example["input_ids"]), tokenizer.decode(counted)


def test_the_loss_counts_each_answer_with_its_end_and_nothing_else(tokenizer):
    text, counted = trained(say(("system", "wise"), *TURNS), tokenizer)
    assert text == "[CLS] wise wise [SEP] . [CLS] we a film [SEP] . [CLS] great a plot [SEP] . [CLS] we long [SEP] . " + (
        "[CLS] great loud and long [SEP] ."
    )
    assert counted == "a plot [SEP] loud and long [SEP]"
    assert trained(say(*TURNS), tokenizer, completion_only_loss=False)[1] == text.partition("[CLS] we")[2].join(("we", ""))


def test_words_of_the_template_in_a_prompt_are_not_taken_for_an_answer(tokenizer):
    assert trained(say(("user", "[CLS] great a plot [SEP]"), ("assistant", "dull")), tokenizer)[1] == "dull [SEP]"


def test_an_answer_that_has_its_own_end_token_is_refused(tokenizer, plain_model):
    for reader in (tokenizer, transformers.AutoTokenizer.from_pretrained(plain_model)):
        with pytest.raises(UserError, match=r"the answer 'dull \[SEP\]' holds \[SEP\], the token that ends an answer: remove it"):
            chat_tokens.encode(say(("user", "a film"), ("assistant", "dull [SEP]")), reader, Config(task="causal-lm"))


def test_without_a_template_an_example_is_prompt_answer_and_end_token(plain_model):
    tokenizer = transformers.AutoTokenizer.from_pretrained(plain_model)
    assert trained(say(*TURNS[:2]), tokenizer) == ("[SEP] a film a plot [SEP]", "a plot [SEP]")
    with pytest.raises(UserError, match="no chat template, so it reads only a prompt and its answer"):
        chat_tokens.encode(say(*TURNS), tokenizer, Config(task="causal-lm"))


def test_a_template_that_changes_earlier_answers_trains_on_the_last_one(tokenizer):
    """Qwen3's template puts an empty thought before an answer, and leaves it out as soon as another turn follows."""
    tokenizer.chat_template = (
        "{% for m in messages %}[CLS]{{ 'great ' + ('loud ' if loop.last else '') if m.role == 'assistant' else 'we ' }}"
        "{{ m.content }}[SEP]{% endfor %}{% if add_generation_prompt %}[CLS]great loud {% endif %}"
    )
    messages = say(("user", "a film"), ("assistant", "dull"), ("user", "long"), ("assistant", "thin"))
    assert trained(messages, tokenizer)[1] == "thin [SEP]"
    assert chat_tokens.encode(messages, tokenizer, Config(task="causal-lm"))["skipped"] == 1
    assert chat_tokens.encode(messages[:2], tokenizer, Config(task="causal-lm"))["skipped"] == 0
    assert chat_tokens.encode(messages, tokenizer, Config(task="causal-lm", completion_only_loss=False))["skipped"] == 0, (
        "it is counted"
    )


def test_a_template_that_ends_a_conversation_with_the_end_token_trains_on_all_answers(tokenizer):
    """Phi-3's template puts the end token after the last answer, which has its own end already."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'great ' if m.role == 'assistant' else 'we ' }}{{ m.content }}[CLS] .{% endfor %}"
        "{% if add_generation_prompt %}great {% else %}[SEP]{% endif %}"
    )
    text, counted = trained(say(*TURNS), tokenizer)
    assert text.endswith("great loud and long [CLS] . [SEP]") and counted == "a plot [CLS] loud and long [CLS]"
    assert chat_tokens.encode(say(*TURNS), tokenizer, Config(task="causal-lm"))["skipped"] == 0
    assert chat_tokens.end_tokens(tokenizer) == tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]"])


def test_a_template_that_loses_the_beginning_or_the_system_message_is_refused(tokenizer):
    tokenizer.chat_template = "{% for m in messages[-2:] %}[CLS]{{ m.content }}[SEP]{% endfor %}"
    with pytest.raises(UserError, match="writes something else before a new answer than before one in the data"):
        chat_tokens.encode(say(*TURNS), tokenizer, Config(task="causal-lm"))
    tokenizer.chat_template = TEMPLATE.replace(
        "{% for message in messages -%}", "{% for message in messages if message.role != 'system' -%}"
    )
    with pytest.raises(UserError, match="leaves out the system message"):
        chat_tokens.encode(say(("system", "wise"), *TURNS), tokenizer, Config(task="causal-lm"))
    tokenizer.chat_template = (
        "{% for m in messages %}[CLS]{{ m.content }} .{% endfor %}{% if add_generation_prompt %}[CLS]{% endif %}"
    )
    with pytest.raises(UserError, match="puts no special token after an answer"):
        chat_tokens.encode(say(*TURNS), tokenizer, Config(task="causal-lm"))
    tokenizer.chat_template = "{{ raise_exception('no system') }}"
    with pytest.raises(UserError, match="refuses a conversation .no system"):
        chat_tokens.encode(say(*TURNS), tokenizer, Config(task="causal-lm"))


def test_templates_that_train_something_else_than_the_answer_are_refused(tokenizer):
    config, thought = Config(task="causal-lm"), say(("user", "a film"), ("assistant", "<think> long </think> dull"))
    answer = "{{ 'great ' if m.role == 'assistant' else 'we ' }}{{ m.content }}[SEP]"
    tokenizer.chat_template = "{% for m in messages %}[CLS]" + answer + "{% endfor %}{% if add_generation_prompt %}[CLS]{% endif %}"
    with pytest.raises(UserError, match="writes 'great' before an answer, and this would be learned"):  # GPT-OSS: final
        chat_tokens.encode(say(*TURNS), tokenizer, config)
    tokenizer.chat_template = TEMPLATE.replace("message.content", "message.content.split('</think>')[-1]")
    assert trained(say(*TURNS), tokenizer)[1] == "a plot [SEP] loud and long [SEP]"
    with pytest.raises(UserError, match="changes an answer"):  # DeepSeek-V3.1
        chat_tokens.encode(thought, tokenizer, config)
    tokenizer.chat_template = TEMPLATE + "{% if add_generation_prompt %} <think>{% endif %}"
    with pytest.raises(UserError, match="before a new answer than before one in the data, such as the start of a thought"):
        chat_tokens.encode(say(*TURNS), tokenizer, config)  # DeepSeek-R1
    tokenizer.chat_template = TEMPLATE + "{{ none + 1 }}"
    with pytest.raises(UserError, match="refuses a conversation"):
        chat_tokens.encode(say(*TURNS), tokenizer, config)


def test_a_system_message_that_the_template_leaves_out_is_refused_also_where_nothing_is_learned(tokenizer):
    start = "{% for message in messages -%}"
    tokenizer.chat_template = TEMPLATE.replace(start, "{% for message in messages if message.role != 'system' -%}")
    with pytest.raises(UserError, match="leaves out the system message"):  # its words are also in the prompt
        chat_tokens.prompt_ids(say(("system", "a film"), ("user", "a film")), tokenizer, 100)
    tokenizer.chat_template = TEMPLATE.replace("message.content", "message.content.replace('loud', '')")
    assert chat_tokens.prompt_ids(say(("system", "loud"), ("user", "a film")), tokenizer, 100), (
        "a switch such as /no_think is none of the text"
    )


def test_a_prompt_is_cut_between_characters_and_not_within_one(tokenizer_of_bytes):
    tokenizer, prompt = tokenizer_of_bytes, "\U0001f9d9" * 40
    length = chat_tokens.encode(say(("user", prompt), ("assistant", "one two")), tokenizer, Config(task="causal-lm"))["length"]
    for max_length in range(length - 9, length):
        example = chat_tokens.encode(
            say(("user", prompt), ("assistant", "one two")), tokenizer, Config(task="causal-lm", max_length=max_length)
        )
        text = tokenizer.decode(example["input_ids"])
        assert text.endswith("one two[SEP]") and "\ufffd" not in text and not example["answer_cut"]


def test_too_long_conversations_lose_old_turns_then_the_prompts_beginning_then_the_answers_end(tokenizer):
    long = " ".join(map(str, range(40)))
    text, counted = trained(say(*TURNS), tokenizer, max_length=20)
    assert (text, counted) == ("[CLS] we long [SEP] . [CLS] great loud and long [SEP] .", "loud and long [SEP]")
    assert trained(say(*TURNS, ("user", long)), tokenizer, max_length=20)[0] == text
    text, counted = trained(say(("user", long), ("assistant", "great")), tokenizer, max_length=20)
    assert text.startswith("[CLS] we 29 30") and text.endswith("39 [SEP] . [CLS] great great [SEP] .") and counted == "great [SEP]"
    example = chat_tokens.encode(say(("user", long), ("assistant", long)), tokenizer, Config(task="causal-lm", max_length=40))
    text = tokenizer.decode(example["input_ids"])
    assert example["answer_cut"] and len(example["input_ids"]) == 40 and example["length"] == 88
    assert text.startswith("[CLS] we 36 37 38 39 [SEP] . [CLS] great 0 1 2")
    text, counted = trained(say(("system", long), ("user", long), ("assistant", "loud")), tokenizer, max_length=40)
    assert text.startswith("[CLS] wise 0 1 2") and "[CLS] we 39 [SEP]" in text and counted == "loud [SEP]"
    with pytest.raises(UserError, match="max_length=7 leaves no token for the answer to 'a film'"):
        chat_tokens.encode(say(*TURNS[:2]), tokenizer, Config(task="causal-lm", max_length=7))


def test_prompts_that_differ_only_before_the_cut_do_not_share_their_references(tokenizer):
    rows = [say(("user", f"{i} {'a film ' * 20}"), ("assistant", "great")) for i in (1, 2, 1)]
    config = Config(task="causal-lm", max_length=20)
    examples = [chat_tokens.encode(messages, tokenizer, config) for messages in rows]
    assert examples[0]["prompt"] == examples[1]["prompt"]
    numbers, prompts = chat.number_prompts(Tokens(Dataset.from_list(examples), np.zeros(3)))
    assert numbers.tolist() == [0, 1, 0] and prompts[0] == prompts[1]


def test_a_row_whose_answer_does_not_fit_is_named(call, chat_flags, tmp_path):
    rows = [{"prompt": f"a film {i}", "completion": "great", "system": "wise" if i == 30 else None} for i in range(40)]
    write_lines(tmp_path / "rows.jsonl", rows)
    refused = call("fine_tune.py", *chat_flags, "--max_length", 11)
    assert refused.code == 2 and "error: row 30 of split train: max_length=11 leaves no token for the answer to " in refused.err


def test_a_conversation_that_begins_with_an_answer_or_is_empty_is_not_answered(call, chat_run, tmp_path):
    write_lines(tmp_path / "m.jsonl", [{"messages": say(("system", "wise"))}])
    assert "--max_new_tokens 0 is out of range" in call("predict.py", "a film", "--max_new_tokens", 0).err
    refused = call("predict.py", "--file", tmp_path / "m.jsonl")
    assert refused.code == 2 and "text 1 can't be answered: it has no message of the user" in refused.err
    rows = [{"instruction": "", "input": "a film"}, {"instruction": "", "input": ""}]
    write_lines(tmp_path / "i.jsonl", rows)
    assert "text 2 can't be answered: it has no message of the user" in call("predict.py", "--file", tmp_path / "i.jsonl").err


@pytest.mark.parametrize("messages", [say(*TURNS[:2]), say(("system", "wise"), *TURNS)])
def test_the_model_reads_the_same_tokens_in_training_evaluation_and_prediction(messages, tokenizer):
    example = chat_tokens.encode(messages, tokenizer, Config(task="causal-lm"))
    prompt = chat_tokens.prompt_ids(messages[:-1], tokenizer, 256)
    answer = chats.split_last_answer(messages)[1]
    assert example["prompt"] == prompt == example["input_ids"][: len(prompt)]
    assert example["input_ids"][len(prompt) :] == tokenizer(f"{answer}[SEP] .", add_special_tokens=False)["input_ids"]
    assert chat_tokens.end_tokens(tokenizer) == [tokenizer.eos_token_id]


@pytest.mark.parametrize("turns", [TURNS[:1], [("system", "wise"), *TURNS[:1]], [("system", "wise"), *TURNS[:3]]])
def test_the_code_of_the_model_card_reads_the_same_tokens(turns, tokenizer, plain_model):
    def prompt_ids(prompt, tokenizer):
        variables = {"tokenizer": tokenizer}
        calibration = {"has_template": bool(tokenizer.chat_template), "ends": [4]}
        code = report.template("chat.py.jinja").render(
            config=Config(), calibration=calibration, load="", separator=chat_tokens.SEPARATOR
        )
        exec(code.rpartition("print(")[0], variables)
        return variables["prompt_ids"](prompt)

    messages = say(*turns)
    expected = chat_tokens.prompt_ids(messages, tokenizer, 256)
    assert prompt_ids([message | {"content": f" {message['content']}\n"} for message in messages], tokenizer) == expected
    if len(turns) == 1:
        assert prompt_ids(" a film\n", tokenizer) == expected
        plain = transformers.AutoTokenizer.from_pretrained(plain_model)
        assert prompt_ids(" a film\n", plain) == chat_tokens.prompt_ids(messages, plain, 256)


# --- metrics -------------------------------------------------------------------------------------------------------------


def test_metrics_count_all_references_of_a_prompt():
    texts, references = ["the cat sat on the mat", "a dog"], [["a cat sat on a mat", "the cat is on the mat"], ["one dog ran"]]
    statistics = answers.statistics(texts, references)
    streams = [["a cat sat on a mat", "one dog ran"], ["the cat is on the mat", None]]
    values = {metric.name: metric.of(statistics) for metric in answers.METRICS}
    assert values["bleu"] == pytest.approx(BLEU().corpus_score(texts, streams).score)
    assert values["rouge_l"] == pytest.approx((10 / 12 + 2 / 5) / 2)  # "the cat on the mat", "dog"
    assert values["token_f1"] == pytest.approx((1 + 2 / 4) / 2)  # without articles: all four words, then "dog"
    assert values["exact_match"] == 0.5


@pytest.mark.parametrize(("reference", "same", "others"), [("A", "a", ["", "the", "B", "."]), ("+", " +", ["-", "", "A"])])
def test_answers_of_articles_or_punctuation_only_are_told_apart(reference, same, others):
    for score in (answers.exact_match, answers.token_f1):
        assert score(same, reference) == 1 and not any(score(other, reference) for other in others)


# --- scripts -------------------------------------------------------------------------------------------------------------


def test_a_run_shows_what_it_trains_on_and_answers_each_prompt_once(call, chat_flags, tmp_path):
    lines = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "data").mkdir()
    for split, part in (("train", lines[:80]), ("test", lines[80:])):
        (tmp_path / f"data/{split}.jsonl").write_text("".join(part))
    chat_flags[chat_flags.index("--dataset_name") + 1] = "data"
    trained = call("fine_tune.py", *chat_flags, "--precision", "float32")
    assert trained.code == 0 and re.search(
        r"reads  \[CLS\] we a film \d+ \[SEP\] . \[CLS\] great\[\[(great|moving) \d+ \[SEP\]\]\]", trained.out
    )
    assert re.search(r"the loss counts the tokens in \[\[ \]\]: \d+ of [\d,]+ \(\d+\.\d%\)", trained.out)
    assert call("evaluate.py").code == 0
    metrics = json.loads((tmp_path / "outputs/run/metrics.json").read_text())
    table = pd.read_parquet(tmp_path / "outputs/run/predictions.parquet")
    assert metrics["prompts"] == metrics["n"] / 2 and metrics["bleu_signature"].startswith("nrefs:2|")
    errors = pd.read_csv(tmp_path / "outputs/run/errors.csv")
    assert len(errors) == metrics["prompts"] and errors.chrf.is_monotonic_increasing and set(errors.prompt.str[:6]) == {"a film"}

    # the same answers: one by one, by evaluate.py, by the code of the model card and by the merged model
    row = table.iloc[0]
    prompt = errors.prompt[errors.row == row.row].iloc[0]
    assert json.loads(call("predict.py", "--json", prompt).out) == {"prompt": prompt, "answer": row.answer}
    assert call("export.py", "--formats", "merged").code == 0
    for folder, name in (("adapter", "ADAPTER"), ("export/merged", "MODEL")):
        path = tmp_path / "outputs/run" / folder
        blocks = re.findall(r"```python\n(.*?)```", (path / "README.md").read_text(), flags=re.DOTALL)
        (code,) = (block for block in blocks if "def answer" in block)
        variables = {}
        exec(code.replace(f'{name} = "{name}"', f"{name} = {str(path)!r}").rpartition("print(")[0], variables)
        assert variables["answer"](prompt) == row.answer
        for block in [block for block in blocks if "pipeline(" in block]:
            exec(block.replace('"MODEL"', repr(str(path))), variables)
            (generated,) = variables["model"](say(("user", prompt)))
            assert generated["generated_text"][-1]["content"].strip() == row.answer
    settings = json.loads((tmp_path / "outputs/run/export/merged/generation_config.json").read_text())
    assert settings["eos_token_id"] == [4] and (tmp_path / "outputs/run/export/merged/chat_template.jinja").exists()


@pytest.mark.parametrize(("speedups", "penalty"), [("True", None), ("True", 5.0), ("False", None)])
def test_answers_in_batches_are_those_that_generate_gives_one_by_one(speedups, penalty, call, chat_flags, monkeypatch):
    assert call("fine_tune.py", *chat_flags, "--precision", "float32", "--speedups", speedups).code == 0
    predictor = load_engine(open_run(Path("outputs/run"), tasks.pick), "torch")
    predictor.model.get_base_model().generation_config.repetition_penalty = penalty  # as in the files of Qwen2.5
    if (speedups, penalty) != ("True", None):
        monkeypatch.delattr(greedy_search, "search")  # this search has no penalty, and is a part of the speedups
    prompts = [" ".join(["a film", *map(str, range(n))]) for n in (0, 9, 3, 1)]
    written = predictor.task.answers(predictor, {"prompt": prompts})["answer"]
    for prompt, answer in zip(prompts, written, strict=True):
        ids = torch.tensor([chat_tokens.prompt_ids(say(("user", prompt)), predictor.tokenizer, 32)])
        settings = dict(attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, eos_token_id=4, pad_token_id=4)
        generated = predictor.model.generate(input_ids=ids, **settings)
        assert answer == predictor.tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_a_conversation_in_the_terminal_remembers_its_turns_until_it_is_reset(call, chat_run, monkeypatch):
    read, typed = [], iter(["a film 3", "", "and now", "/reset", "a film 3", "/exit", "never read"])
    render = chat_tokens.render
    monkeypatch.setattr(chat_tokens, "render", lambda messages, *a, **b: read.append(len(messages)) or render(messages, *a, **b))
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    shown = call("predict.py", "--chat")
    assert (
        shown.code == 0 and shown.out.startswith("/exit ends the conversation") and max(read) == 3 and next(typed) == "never read"
    )
    lines = shown.out.splitlines()
    assert lines[1] == lines[4], "the first answer comes again after /reset"
    (alone,) = call("predict.py", "a film 3").out.splitlines()
    assert lines[1].strip() == alone


def test_a_system_message_is_read_before_texts_and_in_a_conversation(call, chat_run, monkeypatch):
    read, typed = [], iter(["a film 3", "/reset", "and now", "/exit"])
    render = chat_tokens.render
    monkeypatch.setattr(chat_tokens, "render", lambda messages, *a, **b: read.append(messages) or render(messages, *a, **b))
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    for flags, prompt in ((["a film 3"], "a film 3"), (["--chat"], "and now")):
        assert call("predict.py", *flags, "--system", "wise").code == 0
        assert say(("system", "wise"), ("user", prompt)) in read
        read.clear()
    refused = call("predict.py", "--file", "rows.jsonl", "--system", "wise")
    assert refused.code == 2 and "its column system" in refused.err


def test_without_a_template_each_line_of_a_conversation_is_answered_on_its_own(plain_model, monkeypatch):
    plain, prompts = transformers.AutoTokenizer.from_pretrained(plain_model), []
    plain.eos_token = "[SEP]"
    monkeypatch.setattr(chat, "stream_text", lambda model, tokenizer, prompt, *others: prompts.append(prompt) or iter(()))
    predictor = Predictor(chat.Chat(), torch.nn.Identity(), plain, Config(task="causal-lm", precision="float32"))
    for messages in (say(*TURNS[:3]), say(TURNS[2])):
        assert [*chat.Chat().stream(predictor, messages)] == []
    assert prompts[0] == prompts[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--top_p", "0.5"], "--top_p has no effect with temperature 0"),
        (["--seed", "3"], "--seed has no effect with temperature 0"),
        (["--temperature", "-1"], "--temperature -1.0 is out of range"),
        (["--max_new_tokens", "0"], "--max_new_tokens 0 is out of range"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_a_conversation_begins(flags, message, call, chat_run, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("a line was read"))
    refused = call("predict.py", "--chat", *flags)
    assert refused.code == 2 and message in refused.err


def test_prompts_that_are_cut_are_counted(call, chat_run):
    answered = call("predict.py", "a film 3", "a film " * 40)
    assert answered.code == 0 and "note: 1 of 2 prompts were cut to 32 tokens" in answered.err
    assert "cut" not in call("predict.py", "a film 3").err


def test_a_model_with_several_templates_and_idle_settings_of_sampling_is_trained_and_exported(
    call, chat_flags, chat_model, tokenizer, tmp_path
):
    shutil.copytree(chat_model, tmp_path / "model")
    tokenizer.chat_template = {"default": TEMPLATE, "tool_use": TEMPLATE}
    (tmp_path / "model/chat_template.jinja").unlink()
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model/generation_config.json").write_text(json.dumps(dict(temperature=0.6, top_p=0.9)))
    trained = call("fine_tune.py", *chat_flags, "--num_train_epochs", 0.1, "--model_name", "model")
    assert trained.code == 0, trained.err
    exported = call("export.py", "--formats", "merged")
    assert exported.code == 0, exported.err
    settings = json.loads((tmp_path / "outputs/run/export/merged/generation_config.json").read_text())
    assert settings["eos_token_id"] == [4] and not {"temperature", "top_p"} & {*settings}


def test_tokens_that_the_model_lacks_are_refused(call, chat_flags, chat_model, tokenizer, tmp_path):
    shutil.copytree(chat_model, tmp_path / "model")
    tokenizer.add_tokens([f"<{i}>" for i in range(100)])
    tokenizer.save_pretrained(tmp_path / "model")
    write_lines(tmp_path / "rows.jsonl", [{"prompt": f"a film <{i}>", "completion": "great"} for i in range(100)])
    refused = call("fine_tune.py", *chat_flags, "--model_name", "model")
    assert refused.code == 2 and "save the model again after resize_token_embeddings" in refused.err, refused.err
    assert not [*tmp_path.glob("outputs/*")]


def test_an_answer_is_computed_in_the_same_precision_whether_streamed_or_in_a_batch(chat_model, tokenizer, monkeypatch):
    model, used = transformers.AutoModelForCausalLM.from_pretrained(chat_model), []
    generate = model.generate

    def recorded(**settings) -> torch.Tensor:
        used.append(any(map(torch.is_autocast_enabled, ("cpu", "cuda"))))
        return generate(**settings)

    monkeypatch.setattr(model, "generate", recorded)
    monkeypatch.setattr("finetuning.speed.precision.pick_precision", lambda _: ("bf16", ""))
    tokenizer.pad_token = "[PAD]"
    config = Config(task="causal-lm", prompt_column="prompt", method="full", speedups=False, max_new_tokens=3)
    predictor, task = Predictor(chat.Chat(), model, tokenizer, config), chat.Chat()
    predictor.options = {}
    pieces = task.stream(predictor, say(("user", "a film")))
    assert ["".join(pieces).strip()] == task.answers(predictor, {"prompt": ["a film"]})["answer"] and used == [True, True]


def test_predict_reads_files_of_prompts_and_of_conversations(call, chat_run, tmp_path):
    write_lines(tmp_path / "p.jsonl", [{"prompt": "a film 3"}, {"prompt": "a film 4"}])
    whole = [[*say(("user", f"a film {i}")), *say(("assistant", "x"))] for i in (3, 4)]
    write_lines(tmp_path / "m.jsonl", [{"messages": messages} for messages in whole])
    expected = call("predict.py", "--file", tmp_path / "p.jsonl").out
    assert expected and call("predict.py", "--file", tmp_path / "m.jsonl").out == expected
    assert call("predict.py", "--file", tmp_path / "m.jsonl", "--out", tmp_path / "out.parquet").code == 0
    assert pd.read_parquet(tmp_path / "out.parquet").answer.tolist() == expected.splitlines()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_new_tokens", "0"], "max_new_tokens=0 is out of range"),
        (["--max_new_tokens", "64"], "max_new_tokens=64 leaves no room for a prompt in the 64 positions"),
        (["--prompt_column", "other"], "prompt_column=other is not a column"),
        (["--prompt_column", "prompt", "--text_column", "text"], "text_column=text is not for prompts and answers"),
        (["--label_column", "completion"], "label_column=completion is not for prompts and answers"),
        (["--text_column", "prompt", "--completion_column", "completion"], "completion_column is for prompts and answers"),
        (["--method", "head"], "method=head is not for causal-lm"),
        (["--metric_for_best_model", "bleu"], "metric_for_best_model=bleu is not known"),
        (["--truncation", "head"], "truncation=head is not for causal-lm"),
    ],
)
def test_settings_that_do_not_fit_are_refused(flags, message, call, chat_flags):
    refused = call("fine_tune.py", *chat_flags, *flags)
    assert refused.code == 2 and message in refused.err


def test_chat_is_refused_for_other_runs(call, finished_run):
    refused = call("predict.py", "--chat")
    assert refused.code == 2 and "--chat is for runs that were trained on prompts and answers" in refused.err


def test_equal_prompts_stay_in_one_split(chat_run):
    run = open_run(chat_run, tasks.pick)
    data = load_data(run.task, run.config, run.origins["dataset"])
    assert len(np.intersect1d(data.train.hashes, data.test.hashes)) == 0
    assert (np.unique(data.test.hashes, return_counts=True)[1] == 2).all(), "with both answers"


def test_another_chat_template_gives_other_tokens(call, chat_flags, chat_model, tmp_path):
    flags = [*chat_flags, "--num_train_epochs", 0.1]
    before = call("fine_tune.py", *flags, "--run_name", "a").out
    shutil.copytree(chat_model, tmp_path / "other")
    file = tmp_path / "other/chat_template.jinja"
    file.write_text(file.read_text().replace("great", "moving"))
    assert "[CLS] great" in before and "[CLS] moving" in call("fine_tune.py", *flags, "--model_name", tmp_path / "other").out
