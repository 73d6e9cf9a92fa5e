"""Engines answer requests made of token ids. Everything above them knows only `engines.base`."""
