"""Label new texts with a fine-tuned adapter.

python predict.py "A film to remember." "Two hours I want back."
python predict.py --file reviews.txt          a text on each line
cat reviews.txt | python predict.py --json    one JSON object on each line
python predict.py --run outputs/RUN "..."     another run than the one that finished last
"""

import argparse
import json
import sys
from pathlib import Path

from finetuning.cli import exit_cleanly
from finetuning.errors import UserError


@exit_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to label; none: a text on each line of the standard input")
    parser.add_argument("--file", type=Path, help="read a text on each line of this file instead")
    parser.add_argument("--run", type=Path, help="a run folder; not given: the newest in --output_dir")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs"), help="where to look for the newest run")
    parser.add_argument("--json", action="store_true", help="print one JSON object on each line")
    arguments = parser.parse_args()
    texts = read_texts(arguments)

    import pandas as pd
    from scipy.special import softmax

    from finetuning import console, data, report, training

    console.quiet_libraries()
    run = report.open_run(arguments.run or report.newest_run(arguments.output_dir))
    lora, tokenizer, _ = report.load_model(run)
    ids, _ = data.tokenize(data.clean(pd.Series(texts), "input"), tokenizer, run.config)
    probabilities = softmax(training.predict(lora, tokenizer, ids, run.config), axis=-1)
    names = run.record["dataset"]["label_names"]
    for text, row in zip(texts, probabilities, strict=True):
        label, probability = names[row.argmax()], float(row.max())
        if arguments.json:
            print(json.dumps({"text": text, "label": label, "probability": round(probability, 6)}, ensure_ascii=False))
        else:
            print(f"{label:<{max(map(len, names))}}  {probability:.3f}  {text if len(text) <= 100 else text[:97] + '...'}")


def read_texts(arguments: argparse.Namespace) -> list[str]:
    """The texts to label, from the one place they were given; raises `UserError` for none, or an empty one."""
    if arguments.texts and arguments.file:
        raise UserError("give texts or --file, not both")
    try:
        if arguments.file:
            texts = arguments.file.read_text(encoding="utf-8").splitlines()
        else:
            texts = arguments.texts or sys.stdin.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--file {arguments.file}: cannot be read as UTF-8 text ({error})") from error
    if not texts:
        raise UserError("no texts: give them as arguments, with --file, or on the standard input, one a line")
    if empty := [number for number, text in enumerate(texts, 1) if not text.strip()]:
        raise UserError(f"text {empty[0]} is empty: every line gets a label, so remove the empty ones ({len(empty)} in all)")
    return texts


if __name__ == "__main__":
    main()
