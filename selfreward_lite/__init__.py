"""A language model that improves itself by judging its own answers and judgments, on one GPU.

A file imports only from its own folder and from folders above it:

    system    the machine: errors, files, locks, GPUs, child processes
    config    everything that can be set; presets
    data      records, the run's SQLite store, downloads, rankings, the tiny world
    engine    token ids in, completions out, in a child process that may crash
    models    a model as tokens and files; the proof that PEFT and llama.cpp agree
    method    the two papers as pure functions
    training  token-id rows in, a LoRA adapter out
    run       one run: the order of its steps, and what must survive a kill
    report    a run as numbers, tables, figures and pages
    app       the Gradio page
    bench     commands that measure
    cli       the command line

Importing this package is cheap: it loads neither torch nor llama.cpp nor gradio.
"""

__version__ = "0.1.0"
