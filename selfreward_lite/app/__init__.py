"""The page: tabs, conversation, background runs.

No SQL, no rule of the papers; every text of a model shown as Markdown goes through
`escape`.
Start: `page.py`.
"""

import os

KEPT = ("GRADIO_ROOT_PATH", "GRADIO_ANALYTICS_ENABLED", "GRADIO_ANALYTICS_CACHE_FREQUENCY")
# Before a module here imports gradio. Its other variables could open the page to others
# (GRADIO_ALLOWED_PATHS), or keep it from starting.
for name in [name for name in os.environ if name.startswith("GRADIO_")]:
    if name not in KEPT:
        del os.environ[name]
# It would also sum up its last 10,000 events after each event, for a page that is switched off.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000000")
