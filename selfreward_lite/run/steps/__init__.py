"""The steps of a run, each between the store and the method; `run.loop` holds their order."""
