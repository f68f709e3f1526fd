"""The rows that travel between stages, as Arrow schemas. Owns column names and types; knows nothing of storage."""

import pyarrow as pa

# One sampled answer. `draw` is the k-draw that stood in the prompt, -1 where none did.
ANSWERS = pa.schema(
    [
        ("train_domain", pa.string()),
        ("eval_domain", pa.string()),
        ("question", pa.int16()),
        ("draw", pa.int8()),
        ("sample", pa.int16()),
        ("answer", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("finish", pa.string()),
    ]
)

# One judged (question, answer) pair. `score` is null where the judge put less than the stated mass on numbers.
SCORES = pa.schema(
    [
        ("eval_domain", pa.string()),
        ("question", pa.int16()),
        ("answer", pa.string()),
        ("score", pa.float64()),
        ("mass", pa.float64()),
        ("coherence", pa.float64()),
    ]
)
