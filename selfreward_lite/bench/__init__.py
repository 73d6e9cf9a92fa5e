"""Commands that measure: each runs the real thing, goes on where it stopped, and prints what it found. One file a command."""
