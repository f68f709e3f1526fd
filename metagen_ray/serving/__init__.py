"""Serving: one Ray Serve LLM app of a base and its adapters, the one client, and the judge."""
