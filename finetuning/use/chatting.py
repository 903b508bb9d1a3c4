"""A conversation with a fine-tuned model in the terminal."""

from finetuning.disk import as_utf8
from finetuning.errors import UserError, printable
from finetuning.use.predicting import Answers

EXIT, RESET = "/exit", "/reset"


def chat(answers: Answers) -> None:
    """Print the model's answer to each line that is typed, as it is written. The conversation so far is read again for each answer.

    Raise `UserError` if the run's task has no conversations.
    """
    task, messages = answers.run.task, []
    if not task.converses:
        raise UserError(
            f"--chat is for runs that were trained on prompts and answers, not for {answers.run.config.task}: leave it out"
        )
    print(f"{EXIT} ends the conversation, {RESET} begins a new one.")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if line == EXIT:
            return
        if line == RESET:
            messages = []
            print("A new conversation begins.")
        elif line:
            messages.append({"role": "user", "content": as_utf8(line)})
            pieces = []
            for piece in task.stream(answers.predictor, messages):
                print(printable(piece), end="", flush=True)
                pieces.append(piece)
            print()
            messages.append({"role": "assistant", "content": "".join(pieces).strip()})
