"""A page to try a finished run on: type a text, see what the model makes of it: a label and the words that decided, or the entities.

    python app.py                the run that finished last, on http://127.0.0.1:7860
    python app.py outputs/RUN    another one

Needs requirements-extras.txt. As a Space on the Hub it runs unchanged, with the run folder beside it.
"""

from pathlib import Path

from finetuning.cli import Parser, exit_cleanly
from finetuning.errors import UserError


@exit_cleanly
def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("run", nargs="?", type=Path, help="a run folder; not given: the newest in --output_dir")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs"), help="where to look for the newest run")
    arguments = parser.parse_args()
    try:
        import gradio
    except ImportError as error:
        raise UserError("app.py needs Gradio: pip install -r requirements-extras.txt") from error

    from finetuning import console, labelling, run_folder
    from finetuning.cards import METHODS

    console.quiet_libraries()
    run = run_folder.open_run(arguments.run or run_folder.newest_run(arguments.output_dir))
    if run.config.text_pair_column:
        raise UserError(f"{run.folder} judges pairs of texts and the page takes one: use predict.py --file")
    labeller = labelling.Labeller(run)

    def answer(text: str):
        if not text.strip():
            raise gradio.Error("Type a text first.", print_exception=False)
        return run.task.demo(labeller.model, labeller.tokenizer, text, run)

    with gradio.Blocks(title=run.folder.name) as page:
        gradio.Markdown(f"# {run.folder.name}\n`{run.record['model']['name']}`, {METHODS[run.config.method]}.")
        text = gradio.Textbox(label="Text", lines=5, max_lines=12)
        button = gradio.Button("Go", variant="primary")
        outputs = run.task.demo_outputs()
        gradio.Examples(run.task.EXAMPLES, text)
        button.click(answer, text, outputs)
    page.launch()


if __name__ == "__main__":
    main()
