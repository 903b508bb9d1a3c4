"""The code behind the scripts. Each folder is a stage of the data's way; task.py is the interface of the tasks in tasks/.

config -> data (rows, tokens) -> model -> training -> results (metrics, report) -> use (new texts, exports)
"""
