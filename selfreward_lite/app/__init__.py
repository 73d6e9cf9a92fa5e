"""The page: tabs, conversation, background runs.

No SQL, no rule of the papers; every text shown goes through `escape`.
Start: `page.py`.
"""
