"""The parts behind fine_tune.py, evaluate.py and predict.py, one concern a file.

config -> sources (rows) -> data (tokens) -> batches -> model -> training -> metrics, plots -> report (run folder)
"""
