"""Export a finished run as models that need neither peft nor this repository.

    python export.py                         the run that finished last
    python export.py outputs/RUN --formats merged
    python export.py --push_to_hub ME/NAME --private     also upload the exports

merged   the adapter merged into the base model, for plain transformers (safetensors)
onnx     the merged model for ONNX Runtime, any batch size and length; needs requirements-extras.txt
int8     the ONNX model with 8-bit weights, smaller and often faster on a CPU
ctranslate2, ctranslate2-int8     translation models for CTranslate2, in float32 or with 8-bit weights; needs requirements-extras.txt

Writes outputs/RUN/export/. Its export.json compares the predictions of each format with those of the run's model on rows of the
test split. If they do not agree, the format is not written, and the exit code is 1.
"""

import sys
from pathlib import Path

from finetuning.cli import Parser, importing
from finetuning.ending import exit_cleanly
from finetuning.errors import UserError

FORMATS = ("merged", "onnx", "int8", "ctranslate2", "ctranslate2-int8")


@exit_cleanly
def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("run", nargs="?", type=Path, help="a run folder; not given: the one in --output_dir that finished last")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs"), help="where to look for the newest run")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, help="the formats to write; not given: all formats of the task")
    parser.add_argument("--rows", type=int, default=500, help="number of rows of the test split to compare on")
    parser.add_argument("--push_to_hub", metavar="REPO", help="upload the exports to this repository, ME/NAME")
    parser.add_argument("--private", action="store_true", help="with --push_to_hub: make the repository private")
    arguments = parser.parse_args()
    if arguments.private and not arguments.push_to_hub:
        raise UserError("--private needs --push_to_hub: add --push_to_hub, or leave --private out")
    if arguments.rows < 1:
        raise UserError(f"--rows {arguments.rows}: the exports are compared on rows of the test split, so it must be at least 1")
    if arguments.push_to_hub and "merged" not in (arguments.formats or ["merged"]):
        raise UserError("--push_to_hub needs the merged model: add merged to --formats")

    with importing():
        from finetuning import console, processes, tasks
        from finetuning.results import cards, run_folder
        from finetuning.use import exporting

    console.quiet_libraries()
    processes.start()
    run = run_folder.open_run(arguments.run or run_folder.newest_run(arguments.output_dir), tasks.pick)
    exports = exporting.export(run, arguments.formats, arguments.rows)  # the first entry is the run's model itself
    console.show_exports(exports, run.task.metrics[0], run.folder / "export")
    if failed := [export["format"] for export in exports[1:] if not export["agrees"]]:
        sys.exit(f"{', '.join(failed)}: not written, because it does not agree with the run's model (see export.json)")
    if arguments.push_to_hub:
        files = exporting.files_for_the_hub(run.folder / "export")
        print(f"pushed to {cards.push_to_hub(files, arguments.push_to_hub, arguments.private, 'Add model and card')}")


if __name__ == "__main__":
    main()
