"""A page to try a finished run on: type a review, read label, probability and the words that decided.

    python app.py                the run that finished last, on http://127.0.0.1:7860
    python app.py outputs/RUN    another one

Needs requirements-extras.txt. As a Space on the Hub it runs unchanged, with the run folder beside it.
"""

from pathlib import Path

from finetuning.cli import Parser, exit_cleanly
from finetuning.errors import UserError

EXAMPLES = [
    "I went in expecting little and left with a lump in my throat. The two leads are superb.",
    "Two hours of my life I will never get back. The plot makes no sense and the jokes fall flat.",
    "Beautifully shot and well acted, but the story never comes to life and the ending is a let-down.",
]


@exit_cleanly
def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, help="a run folder; not given: the newest in --output_dir")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs"), help="where to look for the newest run")
    arguments = parser.parse_args()
    try:
        import gradio
    except ImportError as error:
        raise UserError("app.py needs Gradio: pip install -r requirements-extras.txt") from error

    from finetuning import console, labelling, report
    from finetuning.evaluation import METHODS

    console.quiet_libraries()
    run = report.open_run(arguments.run or report.newest_run(arguments.output_dir))
    labeller = labelling.Labeller(run)

    def judge(text: str) -> tuple[dict, list]:
        if not text.strip():
            raise gradio.Error("Type a review first.", print_exception=False)
        (probabilities,) = labeller.probabilities([text])
        words = labeller.explain(text)
        most = max(abs(contribution) for _, contribution in words) if words else 1
        highlighted = [(f"{word} ", contribution / most) for word, contribution in words]
        return dict(zip(labeller.label_names, map(float, probabilities), strict=True)), highlighted

    with gradio.Blocks(title="Movie reviews") as page:
        gradio.Markdown(
            f"# {run.folder.name}\n`{run.record['model']['name']}`, {METHODS[run.config.method]}. It reads {run.config.max_length} tokens of a text."
        )
        text = gradio.Textbox(label="Review", lines=5, max_lines=12)
        button = gradio.Button("Judge", variant="primary")
        label = gradio.Label(label="Label and probability")
        words = gradio.HighlightedText(label="Words that spoke for it (red) and against (violet)")
        gradio.Examples(EXAMPLES, text)
        button.click(judge, text, [label, words])
    page.launch()


if __name__ == "__main__":
    main()
