"""The pocket world: corpus, tokenizer, pretraining and shipped weights, so that a whole study runs on a laptop."""
