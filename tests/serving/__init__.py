"""A package to pytest, so that the served app (a fixture of the package) ends before other rooms start a Ray."""
