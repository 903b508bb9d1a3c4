"""Complete checkpoints, from which a resumed run ends bit for bit like an uninterrupted one.

The Trainer writes the files of a checkpoint one after the other. When all are on the disk, whole.json is added, with the SHA-256 of
each file and the seconds of training so far. A checkpoint without whole.json is incomplete and never used. It is not used
either if one of its files has changed, or if the best checkpoint is gone, because training ends with the weights of the best one.
"""

import shutil
import sys
import time
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from finetuning.disk import read_json, to_disk, write_json
from finetuning.ending import AfterCheckpoint, Stopped
from finetuning.errors import UserError
from finetuning.fingerprints import read_sealed, seal
from finetuning.processes import by_first
from finetuning.training.progress import is_best

COMPLETE = "whole.json"
STEPS_BETWEEN_AGREEMENTS = 10  # steps after which the processes of a run exchange their signals: each exchange waits for the GPU


class Keeper(TrainerCallback):
    """Marks checkpoints as complete, and saves one whenever a validation is the best so far, and when a signal ends training.

    It also logs at each checkpoint, so that the log of a resumed run has no gap.
    """

    def __init__(self) -> None:
        self.seconds_before, self.started = 0.0, time.perf_counter()
        self.signals = AfterCheckpoint()
        self.stopped_by = 0  # the signal that ends training, on all processes

    def seconds(self) -> float:
        """Return the seconds of training, including those before an interruption."""
        return self.seconds_before + time.perf_counter() - self.started

    def on_train_begin(self, args, state, control, **_) -> None:
        self.started = time.perf_counter()
        if state.global_step:
            self.seconds_before = read_json(_folder(args, state.global_step) / COMPLETE)["seconds"]
        if state.best_global_step and (best := _folder(args, state.best_global_step)).is_dir():
            state.best_model_checkpoint = str(best)  # the run folder may have been moved

    def on_step_end(self, args, state, control, **_) -> None:
        self.stopped_by = self._signal(state.global_step)
        # The last step of an epoch is followed by its validation, and by a checkpoint.
        validates_next = args.eval_strategy == "epoch" and (state.epoch % 1 == 0 or control.should_training_stop)
        control.should_save |= bool(self.stopped_by) and not validates_next
        self.on_epoch_end(args, state, control)

    def _signal(self, step: int) -> int:
        """Return a signal that any process has received, 0 if none has."""
        processes, received = PartialState(), self.signals.number or 0
        if processes.num_processes == 1:
            return received
        if step % STEPS_BETWEEN_AGREEMENTS:
            return 0
        return int(gather(torch.tensor([received], device=processes.device)).max())

    def on_epoch_end(self, args, state, control, **_) -> None:
        control.should_log |= control.should_evaluate or control.should_save

    def on_evaluate(self, args, state, control, metrics, **_) -> None:
        control.should_save |= args.save_strategy != "no" and is_best(args, state, metrics)

    def on_save(self, args, state, control, **_) -> None:
        PartialState().wait_for_everyone()  # each process saves the state of its random generators
        if state.is_world_process_zero:
            folder = _folder(args, state.global_step)
            files = [file for file in folder.rglob("*") if file.is_file()]
            for path in (*files, folder, folder.parent):
                to_disk(path)
            names = [str(file.relative_to(folder)) for file in files]
            write_json(folder / COMPLETE, seal({"seconds": self.seconds()}, folder, names))
        if self.stopped_by:
            PartialState().wait_for_everyone()  # torchrun ends all processes when the first one has ended
            raise Stopped(self.stopped_by)


def _folder(args, step: int) -> Path:
    return Path(args.output_dir) / f"checkpoint-{step}"


@by_first
def last_usable(checkpoints: Path) -> str | None:
    """Return the path of a run's last usable checkpoint, None if it has saved none.

    Delete incomplete ones of a killed process. Damaged ones are renamed, so that the run can write new ones. Raise `UserError` if
    all are damaged.
    """
    faults = {}
    for folder in checkpoints.glob("checkpoint-*"):
        if (folder / COMPLETE).is_file():
            faults[int(folder.name.rsplit("-", 1)[1])] = _fault(folder)
        else:
            shutil.rmtree(folder)
    if not faults:
        return None
    for step in sorted((step for step, fault in faults.items() if not fault), reverse=True):
        best = read_json(checkpoints / f"checkpoint-{step}" / TRAINER_STATE_NAME)["best_global_step"]
        if best and (fault := faults.get(best, "is gone")):
            faults[step] = f"needs checkpoint-{best}, the best one, which {fault}"
    usable = [step for step, fault in faults.items() if not fault]
    if not usable:
        listed = "; ".join(f"checkpoint-{step} {fault}" for step, fault in sorted(faults.items()))
        raise UserError(f"{checkpoints}: no checkpoint can be used: {listed}. Restore the files, or train again")
    last = max(usable)
    for later in sorted(step for step in faults if step > last):
        print(f"note: checkpoint-{later} {faults[later]}; training continues from checkpoint-{last}", file=sys.stderr)
        damaged = checkpoints / f"damaged-{later}"
        shutil.rmtree(damaged, ignore_errors=True)
        (checkpoints / f"checkpoint-{later}").rename(damaged)
    return str(checkpoints / f"checkpoint-{last}")


@by_first
def check_best(args, step: int) -> None:
    """Raise `UserError` if the best checkpoint, that of `step`, is gone or damaged."""
    folder = _folder(args, step)
    if fault := _fault(folder) if folder.is_dir() else "is gone":
        remedy = "restore it, or train again; --resume continues from an older checkpoint if there is one"
        raise UserError(f"{folder}, the best checkpoint, {fault}: {remedy}")


def _fault(folder: Path) -> str | None:
    """Return the first fault of a checkpoint, such as "is damaged: optimizer.pt is missing"; None if it has none."""
    try:
        read_sealed(folder / COMPLETE, remedy="")
    except UserError as error:
        return f"is damaged: {str(error).removeprefix(f'{folder}: ').removesuffix('; ')}"
    except OSError as error:
        return f"can't be read ({error})"
