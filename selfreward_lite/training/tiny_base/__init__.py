"""How the tiny model that ships in `data/tiny/model` was trained: corpus, tokenizer, build."""
