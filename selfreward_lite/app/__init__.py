"""The page: tabs, conversation, background runs.

No SQL, no rule of the papers; every text of a model shown as Markdown goes through
`escape`.
Start: `page.py`.
"""

import os

# Before a module here imports gradio. It would also sum up its last 10,000 events after each event,
# for a page that is switched off.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000000")
