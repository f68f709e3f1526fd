"""What a study costs before it is run: tokens, FLOPs, bytes, hours, money; numbers in, numbers out; no Ray or torch."""
