"""The stages of a study, one file each. A stage lists its missing shards, does them, and commits each."""
