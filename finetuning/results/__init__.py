"""What a run leaves: run folder, metrics, evaluation, report page, pictures, model cards."""
