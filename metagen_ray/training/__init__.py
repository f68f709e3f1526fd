"""LoRA training: rows, batches, engines, bulk scoring and the Ray Train lanes. Only `lanes` and `workers` know Ray."""
