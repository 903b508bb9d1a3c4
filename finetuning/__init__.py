"""The code behind the scripts, in folders by stage; task.py is the interface of the tasks, tasks/ has one file for each kind.

config -> data (rows, tokens) -> model -> training -> results (metrics, report) -> use (new texts, exports)
"""
