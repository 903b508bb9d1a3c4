"""Predict with a fine-tuned model: labels, numbers, entities, continuations, or translations of new texts.

python predict.py "A film to remember." "Two hours I want back."
python predict.py --file reviews.txt                         a text on each line
python predict.py --file reviews.csv --out labelled.parquet  txt, csv, tsv, json, jsonl or parquet; may be larger than memory
cat reviews.txt | python predict.py --json                   one JSON object on each line
python predict.py --explain "A film to remember."            which words decided
python predict.py "This film" --max_new_tokens 100           causal-lm: continue a text; --temperature 0: the most probable words
python predict.py "A [MASK] film."                           masked-lm: the most probable words
python predict.py --num_beams 1 < lines.txt                  translation: a line in, a line out; 1: greedy search
python predict.py --run outputs/RUN "..."                    another run than the one that finished last
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from finetuning.cli import Parser, check_encoding, exit_cleanly, shows_unicode
from finetuning.errors import UserError

ENGINE = (
    "for labels and entities on a CPU; auto: OpenVINO if it is installed, from 1,500 texts on; int8: twice as fast, some labels differ"
)
CONTEXT = "entities: read each row alone, or with its neighbours; not given: as in training, and alone if it is not a row of a --file"
TASK_OPTIONS = ("max_new_tokens", "temperature", "top_p", "seed", "num_beams", "context")


@exit_cleanly
def main() -> None:
    arguments = read_arguments()

    from finetuning import console, disk, processes, tasks
    from finetuning.results import run_folder
    from finetuning.use import predicting

    console.quiet_libraries()
    processes.start()
    if arguments.out:
        predicting.check_out(arguments.out)
    with tempfile.TemporaryDirectory() as cache:
        if arguments.file:
            rows, remarks = predicting.read_file(arguments.file, arguments.encoding, cache)
        else:
            texts = [disk.as_utf8(text) for text in arguments.texts]
            texts, remarks = (texts, []) if texts else predicting.read_stdin(arguments.encoding)
            rows = predicting.rows_of(texts)
        for remark in remarks:
            print(f"note: {remark}", file=sys.stderr)
        run = run_folder.open_run(arguments.run or run_folder.newest_run(arguments.output_dir), tasks.pick)
        columns = run.task.input_columns(rows.column_names, run.config, arguments.text_column)
        if arguments.out:
            predicting.check_names(run.task, rows.column_names)
        if arguments.file:
            names = " and ".join(map(repr, columns.values()))
            print(f"{len(rows):,} rows of {arguments.file.name}, read from column {names}", file=sys.stderr)
        engine = predicting.pick_engine("torch" if arguments.explain else arguments.engine, run, len(rows))
        if engine != "torch":
            print(f"engine {engine} (--engine torch: as the run was evaluated)", file=sys.stderr)
        options = {name: getattr(arguments, name) for name in TASK_OPTIONS if getattr(arguments, name) is not None}
        if not arguments.file and "context" in run.task.options:
            options.setdefault("context", "sentence")  # only the rows of a file are neighbours
        answers = predicting.Answers(run, engine, **options)
        if arguments.out:
            predicting.write_file(answers.add_to(rows, columns, show_progress=True), arguments.out)
            print(f"{len(rows):,} rows written to {arguments.out}")
            return
        for inputs, answer in answers.each(rows, columns):
            words = answers.explain(inputs.get("text")) if arguments.explain else []
            if arguments.json:
                content = run.task.as_json(inputs, answer) | ({"words": words} if words else {})
                print(json.dumps(content, ensure_ascii=not shows_unicode(sys.stdout)))
            else:
                print(" ".join(run.task.as_line(inputs, answer, run.label_names).splitlines()))
                print_words(words)


def read_arguments() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to predict; none: a text on each line of the standard input")
    parser.add_argument("--file", type=Path, help="predict the rows of this file instead")
    parser.add_argument("--out", type=Path, help="with --file: write its columns and the answers there")
    parser.add_argument("--text_column", help="with --file: the column with the text; not given: found by its usual names")
    parser.add_argument("--encoding", help="of the texts' file or standard input; not given: UTF-8, or else guessed, with a note")
    parser.add_argument("--run", type=Path, help="a run folder; not given: the newest in --output_dir")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs"), help="where to look for the newest run")
    parser.add_argument("--json", action="store_true", help="print one JSON object on each line")
    parser.add_argument("--explain", action="store_true", help="show for each text the words that influenced the label most")
    parser.add_argument("--max_new_tokens", type=int, help="causal-lm: tokens of the continuation, at most")
    parser.add_argument("--temperature", type=float, help="causal-lm: below 1 more probable words, 0 only the most probable (greedy)")
    parser.add_argument("--top_p", type=float, help="causal-lm: sample from the most probable words that together have this probability")
    parser.add_argument("--seed", type=int, help="causal-lm: of the sampling")
    parser.add_argument("--engine", choices=("auto", "torch", "openvino", "int8"), default="auto", help=ENGINE)
    parser.add_argument("--num_beams", type=int, help="translation: how many translations beam search follows; 1: greedy search")
    parser.add_argument("--context", choices=("sentence", "neighbours"), help=CONTEXT)
    arguments = parser.parse_args()
    check_encoding(arguments.encoding)
    if arguments.file and arguments.texts:
        raise UserError("give texts or --file, not both")
    if arguments.out and (arguments.explain or not arguments.file):
        raise UserError("--out writes the answers to a --file, without --explain")
    return arguments


def print_words(words: list[tuple[str, float]]) -> None:
    """Print the words with the largest contributions, signed."""
    largest = sorted(words, key=lambda word: -abs(word[1]))[:10]
    if largest:
        print("    " + ", ".join(f"{word} {contribution:+.2f}" for word, contribution in largest))


if __name__ == "__main__":
    main()
