"""Predict with a fine-tuned model: labels, numbers, entities, answers to prompts, continuations, or translations of new texts.

python predict.py "A film to remember." "Two hours I want back."
python predict.py --file reviews.txt                         a text per line
python predict.py --file reviews.csv --out labelled.parquet  --out: csv, tsv, json, jsonl or parquet; may be larger than memory
cat reviews.txt | python predict.py --json                   a JSON object per line
python predict.py --explain "A film to remember."            the words that influenced the label most
python predict.py "This film" --max_new_tokens 100           causal-lm: continue a text; --temperature 0: the most probable tokens
python predict.py --chat                                     causal-lm, trained on prompts and answers: a conversation
python predict.py "A [MASK] film."                           masked-lm: the most probable tokens for the mask
python predict.py --num_beams 1 < lines.txt                  translation: a line for each line; --num_beams 1: greedy search
python predict.py --run outputs/RUN "..."                    this run; without --run: the one that finished last
"""

import argparse
import json
import sys
from pathlib import Path

from finetuning.cli import Parser, check_encoding, importing
from finetuning.ending import exit_cleanly, shows_unicode
from finetuning.errors import UserError, printable

ENGINE_HELP = (
    "for labels, numbers and entities on a CPU; auto: openvino if it is installed and there are 1,500 texts or more, else torch; int8: "
    "weights and activations in 8 bits, 1.9 times as fast as torch on two cores, some labels differ"
)
CONTEXT_HELP = (
    "entities: read each row alone, or with its neighbours; not given: as in training for the rows of a --file, else alone"
)
TASK_OPTIONS = ("max_new_tokens", "temperature", "top_p", "seed", "num_beams", "context")


@exit_cleanly
def main() -> None:
    arguments = read_arguments()

    with importing():
        from finetuning import console, disk, processes, tasks
        from finetuning.results import run_folder
        from finetuning.task import Converses
        from finetuning.use import predicting

    console.quiet_libraries()
    processes.start()
    if arguments.out:
        predicting.check_out(arguments.out)
    options = {name: getattr(arguments, name) for name in TASK_OPTIONS if getattr(arguments, name) is not None}
    run = run_folder.open_run(arguments.run or run_folder.newest_run(arguments.output_dir), tasks.pick)
    if wrong := [name for name in options if name not in run.task.options]:
        raise UserError(f"--{wrong[0]} is not for {run.config.task}: leave it out")
    if arguments.system and not isinstance(run.task, Converses):
        raise UserError(f"--system is for runs that were trained on prompts and answers, not for {run.config.task}: leave it out")
    if arguments.system and not run.calibration["has_template"]:
        raise UserError(f"--system needs a chat template, and the model of {run.folder} has none: leave it out")
    if run.config.text_pair_column and not arguments.file:
        raise UserError(f"{run.folder} reads pairs of texts: give them as rows of a --file")
    if arguments.chat:
        return predicting.chat(predicting.Answers(run, **options), arguments.system)
    if arguments.file:
        rows, remarks = predicting.read_file(arguments.file, arguments.encoding, disk.temporary())
    else:
        rows, remarks = predicting.read_texts(arguments.texts, arguments.encoding)
        if arguments.system:
            rows = rows.add_column("system", [disk.as_utf8(arguments.system)] * len(rows))
    for remark in remarks:
        print(printable(f"note: {remark}"), file=sys.stderr)
    if (pair := run.config.text_pair_column) and pair.strip() not in map(str.strip, rows.column_names):
        raise UserError(f"--file: it has no column {pair}, which held the second texts in training: rename the column of the file")
    columns = run.task.input_columns(rows.column_names, run.config, arguments.text_column)
    if arguments.out:
        predicting.check_names(run.task, rows.column_names)
    if arguments.file:
        names = " and ".join(map(repr, columns.values()))
        print(
            printable(f"{len(rows):,} rows of {arguments.file.name}, read from column{'s' * (len(columns) > 1)} {names}"),
            file=sys.stderr,
        )
    engine = predicting.pick_engine("torch" if arguments.explain else arguments.engine, run, len(rows))
    if engine != "torch":
        print(f"engine {engine} (--engine torch: as the run was evaluated)", file=sys.stderr)
    if not arguments.file and "context" in run.task.options:
        options.setdefault("context", "sentence")  # texts of the command line are not neighbours
    predicting.check_rows(run.task, rows, columns)
    answers = predicting.Answers(run, engine, **options)
    if arguments.out:
        predicting.write_file(answers.add_to(rows, columns), arguments.out)
        print(f"{len(rows):,} rows written to {arguments.out}")
        return
    for inputs, answer in answers.each(rows, columns):
        words = run.task.explain(answers.predictor, inputs.get("text")) if arguments.explain else []
        if arguments.json:
            content = run.task.as_json(inputs, answer) | ({"words": words} if words else {})
            print(json.dumps(content, ensure_ascii=not shows_unicode(sys.stdout)))
        else:
            line = " ".join(run.task.as_line(inputs, answer, run.label_names).splitlines())
            print(printable(line) if sys.stdout.isatty() else line)
            print_words(words)


def read_arguments() -> argparse.Namespace:
    """Return the checked arguments of the command line. Raise `UserError` for a wrong combination."""
    parser = Parser(__doc__)
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to predict; not given: a text per line of standard input")
    parser.add_argument("--file", type=Path, help="predict the rows of this file instead")
    parser.add_argument("--out", type=Path, help="with --file: write its columns and the answers to this file")
    parser.add_argument(
        "--text_column",
        help="with --file: the column with the text; not given: that of --text_column in training, or the first with a usual name",
    )
    parser.add_argument("--encoding", help="encoding of --file or standard input; not given: UTF-8, else guessed, with a note")
    parser.add_argument("--run", type=Path, help="a run folder; not given: the one in --output_dir that finished last")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs"), help="where to look for the newest run")
    parser.add_argument("--json", action="store_true", help="print a JSON object per line")
    parser.add_argument("--chat", action="store_true", help="causal-lm: have a conversation in the terminal")
    parser.add_argument("--system", help="with texts or --chat: the system message, if the model was trained with one")
    parser.add_argument("--explain", action="store_true", help="also print the words that influenced each label most")
    parser.add_argument("--max_new_tokens", type=int, help="causal-lm: at most this many tokens for a continuation or an answer")
    parser.add_argument(
        "--temperature",
        type=float,
        help="causal-lm: below 1, probable tokens become more probable; 0: always the most probable one (greedy)",
    )
    parser.add_argument(
        "--top_p", type=float, help="causal-lm: sample from the most probable tokens that together have this probability"
    )
    parser.add_argument("--seed", type=int, help="causal-lm: seed of the sampling")
    parser.add_argument("--engine", choices=("auto", "torch", "openvino", "int8"), default="auto", help=ENGINE_HELP)
    parser.add_argument("--num_beams", type=int, help="translation: number of beams in beam search; 1: greedy search")
    parser.add_argument("--context", choices=("sentence", "neighbours"), help=CONTEXT_HELP)
    arguments = parser.parse_args()
    check_encoding(arguments.encoding)
    if arguments.file and arguments.texts:
        raise UserError("give texts or --file, not both")
    if arguments.encoding and arguments.texts:
        raise UserError("--encoding is for --file and the standard input: leave it out")
    if arguments.chat and (arguments.texts or arguments.file or arguments.json or arguments.explain):
        raise UserError("--chat reads what you type: leave out texts, --file, --json and --explain")
    if arguments.system and arguments.file:
        raise UserError("--system is for texts and --chat: write the system messages of a --file into its column system")
    if arguments.out and not arguments.file:
        raise UserError("--out writes the answers for the rows of a --file: add --file, or leave --out out")
    if arguments.out and (arguments.explain or arguments.json):
        name = "explain" if arguments.explain else "json"
        raise UserError(f"--{name} is for answers that are printed, and --out writes them to a file: leave one of the two out")
    if arguments.engine != "auto" and (arguments.explain or arguments.chat):
        raise UserError("--explain and --chat always use torch: leave --engine out")
    return arguments


def print_words(words: list[tuple[str, float]]) -> None:
    """Print the ten words with the largest contributions, with their signs."""
    largest = sorted(words, key=lambda word: -abs(word[1]))[:10]
    if largest:
        print(printable("    " + ", ".join(f"{word} {contribution:+.2f}" for word, contribution in largest)))


if __name__ == "__main__":
    main()
