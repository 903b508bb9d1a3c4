"""Complete checkpoints, from which a resumed run ends bit for bit like an uninterrupted one.

The Trainer writes the files of a checkpoint one after the other. When all are on the disk, whole.json is added, with the size of
each file and the seconds of training so far. A checkpoint without whole.json is incomplete and never used.
"""

import json
import shutil
import time
from pathlib import Path

from accelerate import PartialState
from transformers import TrainerCallback

from finetuning.disk import read_json, to_disk, write_json
from finetuning.processes import by_first

COMPLETE = "whole.json"


class Keeper(TrainerCallback):
    """Marks checkpoints as complete, and saves one whenever a validation is the best so far.

    It also logs at each checkpoint, so that the log of a resumed run has no gap.
    """

    def __init__(self) -> None:
        self.seconds_before, self.started = 0.0, time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds of training, including those before an interruption."""
        return self.seconds_before + time.perf_counter() - self.started

    def on_train_begin(self, args, state, control, **_) -> None:
        self.started = time.perf_counter()
        if state.global_step:
            self.seconds_before = json.loads((_folder(args, state.global_step) / COMPLETE).read_text(encoding="utf-8"))["seconds"]
        if state.best_global_step and (best := _folder(args, state.best_global_step)).is_dir():
            state.best_model_checkpoint = str(best)  # the run folder may have been moved

    def on_step_end(self, args, state, control, **_) -> None:
        control.should_log |= control.should_evaluate or control.should_save

    on_epoch_end = on_step_end

    def on_evaluate(self, args, state, control, metrics, **_) -> None:
        value, best = metrics[f"eval_{args.metric_for_best_model}"], state.best_metric
        if best is None or (value > best if args.greater_is_better else value < best):
            control.should_save |= args.save_strategy != "no"

    def on_save(self, args, state, control, **_) -> None:
        PartialState().wait_for_everyone()  # each process saves the state of its random generators
        if state.is_world_process_zero:
            folder = _folder(args, state.global_step)
            files = [file for file in folder.rglob("*") if file.is_file()]
            for path in (*files, folder, folder.parent):
                to_disk(path)
            sizes = {str(file.relative_to(folder)): file.stat().st_size for file in files}
            write_json(folder / COMPLETE, {"seconds": self.seconds(), "files": sizes})


def _folder(args, step: int) -> Path:
    return Path(args.output_dir) / f"checkpoint-{step}"


@by_first
def last_complete(checkpoints: Path) -> str | None:
    """Return the path of a run's last complete checkpoint, None if there is none. Delete incomplete ones of a killed process."""
    complete = {}
    for folder in checkpoints.glob("checkpoint-*"):
        try:
            sizes = read_json(folder / COMPLETE)["files"]
            if all((folder / name).stat().st_size == size for name, size in sizes.items()):
                complete[int(folder.name.rsplit("-", 1)[1])] = str(folder)
                continue
        except (OSError, ValueError):
            pass
        shutil.rmtree(folder)
    return complete[max(complete)] if complete else None
