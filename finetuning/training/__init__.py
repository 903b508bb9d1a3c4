"""The Trainer and what it needs: trainer, batches, checkpoints, progress, trackers, search; prediction for all who predict."""
