"""Start a web page to try a finished run: type a text and see the model's answer, or chat with a model that answers prompts.

    python app.py                the run that finished last, on http://127.0.0.1:7860
    python app.py outputs/RUN    another run

Needs requirements-extras.txt. It also runs as a Space on the Hub, with this repository's code and a run in outputs/.
"""

import functools
import logging
from pathlib import Path

from finetuning.cli import Parser, importing
from finetuning.ending import exit_cleanly
from finetuning.errors import UserError, printable, require_installed

MAX_CHARACTERS = 20_000  # of a text: while a very long one is read, all clients wait
MAX_WAITING = 32  # requests in the queue


def shorten(record: logging.LogRecord) -> bool:
    """Replace the traceback of an invalid request by one line."""
    if record.exc_info:
        record.msg, record.args, record.exc_info = printable(f"a request failed: {record.exc_info[1]!r}"), (), None
    return True


def as_message(message: dict) -> dict[str, str]:
    """Return a message of Gradio's history, whose content is a list of parts, as a role and a text."""
    content = message["content"]
    parts = content if isinstance(content, list) else [{"text": content}]
    return {"role": message["role"], "content": "".join(part.get("text") or "" for part in parts)}


@exit_cleanly
def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("run", nargs="?", type=Path, help="a run folder; not given: the one in --output_dir that finished last")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs"), help="where to look for the newest run")
    arguments = parser.parse_args()
    require_installed("app.py", "gradio")
    import gradio

    with importing():
        from finetuning import console, disk, processes, tasks
        from finetuning.results import run_folder
        from finetuning.results.cards import METHODS
        from finetuning.task import Converses
        from finetuning.use.predicting import load_engine

    console.quiet_libraries()
    logging.getLogger("uvicorn.error").addFilter(shorten)
    processes.start()
    run = run_folder.open_run(arguments.run or run_folder.newest_run(arguments.output_dir), tasks.pick)
    if run.config.text_pair_column:
        raise UserError(f"{run.folder} reads pairs of texts, but the page takes one text: use predict.py --file")
    predictor = load_engine(run, "torch")
    components = {
        "label": gradio.Label,
        "highlight": gradio.HighlightedText,
        "text": functools.partial(gradio.Textbox, lines=5),
        "json": gradio.JSON,
    }

    def checked(text: str) -> str:
        if not isinstance(text, str) or not text.strip():
            raise gradio.Error("Type a text first.", print_exception=False)
        if len(text) > MAX_CHARACTERS:
            message = f"The text has {len(text):,} characters, and the page reads at most {MAX_CHARACTERS:,}: use predict.py."
            raise gradio.Error(message, print_exception=False)
        return disk.as_utf8(text)

    def answer(text: str):
        try:
            values = run.task.widget_values(predictor, checked(text))
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from error
        return values if len(values) > 1 else values[0]

    def reply(text: str, history: list[dict], system: str):
        """Yield the answer as far as it is written."""
        start = [{"role": "system", "content": checked(system)}] if isinstance(system, str) and system.strip() else []
        messages, written = [*start, *map(as_message, history), {"role": "user", "content": checked(text)}], ""
        try:
            for piece in run.task.stream(predictor, messages):
                written += piece
                yield written
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    with gradio.Blocks(title=run.folder.name) as page:
        gradio.Markdown(f"# {run.folder.name}\n`{run.record['model']['name']}`, {METHODS[run.config.method]}.")
        if isinstance(run.task, Converses):
            system = gradio.Textbox(label="System message, if the model was trained with one")
            examples = [[example, None] for example in run.task.examples]  # None: an example leaves the field as it is
            gradio.ChatInterface(reply, examples=examples, additional_inputs=system, api_name="chat")
        else:
            text = gradio.Textbox(label="Text", info=f"at most {MAX_CHARACTERS:,} characters", lines=5, max_lines=12)
            button = gradio.Button("Go", variant="primary")
            outputs = [components[kind](label=caption, elem_id=kind) for kind, caption in run.task.widgets]
            gradio.Examples([*run.task.examples], text)
            button.click(answer, text, outputs)
    page.queue(max_size=MAX_WAITING).launch(max_file_size="1mb")  # the page has no upload, but Gradio accepts files


if __name__ == "__main__":
    main()
