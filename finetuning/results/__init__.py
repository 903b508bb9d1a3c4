"""The results of a run: its folder, metrics, evaluation, report page, plots, model cards."""
