"""The code behind the scripts. Each folder is one stage of the data flow; task.py is the interface of the tasks in tasks/.

config -> data (rows, tokens) -> model -> training -> results (metrics, report) -> use (new texts, exports)
"""

import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # while it is imported, it warns of an optional package
