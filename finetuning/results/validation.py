"""Calibrate a trained model on validation, and measure it there."""

from finetuning.results import metrics
from finetuning.task import Statistics
from finetuning.training.prediction import Predictor
from finetuning.training.trainer import FineTuner, best_validation, chosen_metric


def validate(fine_tuner: FineTuner, predictor: Predictor) -> tuple[dict, Statistics]:
    """Return the entries `calibration` and `validation` of training.json for the best checkpoint, and the per-row statistics.

    `predictor` has the model with the weights of the best checkpoint.
    """
    task, data = fine_tuner.task, fine_tuner.data
    predictions = fine_tuner.validated.get(fine_tuner.state.best_global_step)
    if predictions is None:  # the best checkpoint is from before an interruption
        predictions = task.validate(predictor, fine_tuner.eval_dataset)
    calibration = fine_tuner.label_scale | task.calibrate(predictor, predictions, data.validation)
    statistics = metrics.of_rows(task, predictions, data.validation, calibration)
    interval = metrics.interval(chosen_metric(task, data.config), statistics)
    rows = {"n": len(data.validation), "split": data.validation_split}
    return {"calibration": calibration, "validation": best_validation(fine_tuner) | {"ci95": interval} | rows}, statistics
