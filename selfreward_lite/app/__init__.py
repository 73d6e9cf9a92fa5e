"""The page: tabs, conversation, background runs.

No SQL, no rule of the papers; every text of a model shown as Markdown goes through
`escape`.
Start: `page.py`.
"""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before a module here imports gradio
