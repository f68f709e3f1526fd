"""What a person reads of a study: the page, the terminal table, the stable files. Computes no statistics."""
