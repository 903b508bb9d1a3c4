"""Training with the Trainer: trainer, batches, checkpoints, progress, trackers, search. Prediction: prediction, writing."""
