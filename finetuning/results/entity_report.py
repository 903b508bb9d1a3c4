"""The report page for named entities: metrics, errors by type of error, results by type and length, calibration."""

from functools import partial

from finetuning.data.spans import types_of
from finetuning.results import plots
from finetuning.results.entities import F1, Comparison, Match, mark, place_entities
from finetuning.results.label_report import calibration_section, table_by_label
from finetuning.results.report import MAX_EXAMPLES, Example, Picture, Section, Table
from finetuning.task import Evaluation

MARKED = ("actual_marked", "predicted_marked")
COLUMNS = ["row", "error", "actual", "actual_text", "predicted", "predicted_text", "probability", *MARKED]  # of errors.csv


def sections(evaluation: Evaluation, comparison: Comparison) -> list[Section]:
    """Return the sections of the report page. Some are left out if no entity is actual or predicted."""
    results, page = evaluation.metrics, [_summary(evaluation.metrics)]
    if by_type := results["by_type"]:
        picture = Picture("by_label", "F1 by type", partial(plots.plot_by_label, by_type))
        page.append(Section("Results by type", tables=(table_by_label(by_type, "type", "entities", ".2%"),), pictures=(picture,)))
    if results["calibration"]["scaled"]["bins"]:
        meaning = "The probability of an entity is the lowest probability of its words."
        page.append(calibration_section(results, meaning, caption="fraction of right entities by their probability"))
    return [*page, _examples(evaluation, comparison)]


def describe(evaluation: Evaluation, comparison: Comparison, errors: list[Match]) -> list[dict]:
    """Return a line with the keys `COLUMNS` for each error. The values of `MARKED` are pieces of the sentence (`Spans`)."""
    if not errors:
        return []
    types, rows = types_of(evaluation.label_names), evaluation.split.select([error.position for error in errors]).columns()
    lines = []
    for i, error in enumerate(errors):
        row = {name: values[i] for name, values in rows.items()}
        line = {"row": int(evaluation.split.rows[error.position]), "error": error.error_type, "probability": error.probability}
        for side, entity, sentences in (
            ("actual", error.actual, comparison.actual),
            ("predicted", error.predicted, comparison.predicted),
        ):
            line[side] = types[entity.type] if entity else ""
            line[f"{side}_text"] = row["text"][row["starts"][entity.first] : row["ends"][entity.end - 1]] if entity else ""
            line[f"{side}_marked"] = mark(row["text"], place_entities(row, sentences[error.position], types))
        lines.append(line)
    return lines


def describe_context(results: dict) -> str:
    """Return a text about the sentences that were read together. `results` is the content of metrics.json."""
    if results["context"] == "sentence":
        return "Each sentence was read alone."
    alone = f" If each is read alone, F1 is {results['f1_sentences_alone']:.2%}." if "f1_sentences_alone" in results else ""
    return f"Each sentence was read together with its neighbours in the split.{alone}"


def _summary(results: dict) -> Section:
    numbers = tuple((name, f"{results[name]:,}", "") for name in ("entities", "words"))
    errors = Table(("error", "entities"), [(name, f"{n:,}") for name, n in results["errors"].items()], in_terminal=True)
    names = ([*results["types"], "spurious"], [*results["types"], "missed"])
    draw = partial(plots.plot_confusion_matrix, results["confusion_matrix"], names, plots.title(F1, results))
    return Section(
        text="An entity is right if its first word, its last word and its type are right (strict). " + describe_context(results),
        numbers=numbers,
        tables=(errors,),
        pictures=(Picture("confusion_matrix", "entities by actual and predicted type, with spurious and missed ones", draw),),
    )


def _examples(evaluation: Evaluation, comparison: Comparison) -> Section:
    errors, kinds = comparison.errors(evaluation.calibration["temperature"]), []
    for kind, n in evaluation.metrics["errors"].items():
        examples = []
        for line in describe(evaluation, comparison, [error for error in errors if error.error_type == kind][:MAX_EXAMPLES]):
            actual, predicted = (
                f"{line[f'{side}_text']} ({line[side]})" if line[side] else "no entity" for side in ("actual", "predicted")
            )
            sides = (("actual", line["actual_marked"]), ("predicted", line["predicted_marked"]))
            title = f"actual: {actual}, predicted: {predicted} (row {line['row']})"
            examples.append(Example(title, sides=sides, probability=line["probability"]))
        if examples:
            kinds.append((f"{kind}: {n:,}", examples))
    return Section("The most confident errors", f"Errors: {len(errors):,}. All are in errors.csv.", examples=tuple(kinds))
