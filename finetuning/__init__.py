"""The parts behind fine_tune.py, evaluate.py and predict.py, one concern a file.

config -> sources -> data (rows) -> tokenizing -> batches -> model -> training -> metrics, plots -> run_folder, page
"""
