"""Ask a fine-tuned adapter about new texts: their labels, their entities, how they go on, their translations.

python predict.py "A film to remember." "Two hours I want back."
python predict.py --file reviews.txt                         a text on each line
python predict.py --file reviews.csv --out labelled.parquet  txt, csv, tsv, json, jsonl or parquet; larger than memory is fine
cat reviews.txt | python predict.py --json                   one JSON object on each line
python predict.py --explain "A film to remember."            which words decided
python predict.py "This film" --max_new_tokens 100           of a causal-lm: how it goes on; --temperature 0: the likeliest
python predict.py "A [MASK] film."                           of a masked-lm: the likeliest words
python predict.py --num_beams 1 < lines.txt                  of a translation: a line in, a line out; 1: greedy
python predict.py --run outputs/RUN "..."                    another run than the one that finished last
"""

import json
import sys
import tempfile
from pathlib import Path

from finetuning.cli import Parser, exit_cleanly
from finetuning.errors import UserError

ENGINE = (
    "of labels and entities on a CPU; auto: OpenVINO where installed, from 1,500 texts on; int8: twice as fast, some labels differ"
)


@exit_cleanly
def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to label; none: a text on each line of the standard input")
    parser.add_argument("--file", type=Path, help="label the rows of this file instead")
    parser.add_argument("--out", type=Path, help="with --file: write its columns and the answers there")
    parser.add_argument("--text_column", help="with --file: the column with the text; found by its usual names when not given")
    parser.add_argument("--encoding", help="with --file: of text files; not given: UTF-8, or else guessed, and said")
    parser.add_argument("--run", type=Path, help="a run folder; not given: the newest in --output_dir")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs"), help="where to look for the newest run")
    parser.add_argument("--json", action="store_true", help="print one JSON object on each line")
    parser.add_argument("--explain", action="store_true", help="show for each text the words that moved the decision most")
    parser.add_argument("--max_new_tokens", type=int, help="causal-lm: tokens to go on for, at most")
    parser.add_argument("--temperature", type=float, help="causal-lm: below 1 likelier words, 0 the likeliest alone (greedy)")
    parser.add_argument("--top_p", type=float, help="causal-lm: draw from the likeliest words that together have this probability")
    parser.add_argument("--seed", type=int, help="causal-lm: of what is drawn")
    parser.add_argument("--engine", choices=("auto", "torch", "openvino", "int8"), default="auto", help=ENGINE)
    parser.add_argument("--num_beams", type=int, help="translation: how many beam search follows at a time; 1: greedy")
    arguments = parser.parse_args()
    options = {name: getattr(arguments, name) for name in ("max_new_tokens", "temperature", "top_p", "seed", "num_beams")}
    options = {name: value for name, value in options.items() if value is not None}
    if arguments.file and arguments.texts:
        raise UserError("give texts or --file, not both")
    if arguments.out and (arguments.explain or not arguments.file):
        raise UserError("--out takes the labels of a --file, without --explain")

    from finetuning import console, engine, labelling, processes, run_folder

    console.quiet_libraries()
    processes.start()
    if arguments.out:
        labelling.check_out(arguments.out)
    with tempfile.TemporaryDirectory() as cache:
        if arguments.file:
            rows, remarks = labelling.read_file(arguments.file, arguments.encoding, cache)
            print(*(f"note: {remark}" for remark in remarks), sep="\n", end="\n" if remarks else "", file=sys.stderr)
        else:
            rows = labelling.rows_of(arguments.texts or labelling.read_stdin())
        run = run_folder.open_run(arguments.run or run_folder.newest_run(arguments.output_dir))
        columns = run.task.find_inputs(rows.column_names, run.config, arguments.text_column)
        chosen = engine.pick("torch" if arguments.explain else arguments.engine, run, len(rows))
        if chosen != "torch":
            print(f"engine {chosen} (--engine torch: as the run was evaluated)", file=sys.stderr)
        labeller = labelling.Labeller(run, chosen, **options)
        if arguments.out:
            labelling.write_file(labeller.answer(rows, columns, show_progress=True), arguments.out)
            print(f"{len(rows):,} rows written to {arguments.out}")
            return
        for row in labeller.each(rows, columns):
            inputs = {name: row[column] for name, column in columns.items()}
            words = labeller.explain(inputs.get("text")) if arguments.explain else None
            if arguments.json:
                print(json.dumps(run.task.as_json(inputs, row) | ({"words": words} if words else {}), ensure_ascii=False))
            else:
                print(run.task.as_line(inputs, row, run.label_names))
                if words:
                    run.task.show_words(words)


if __name__ == "__main__":
    main()
