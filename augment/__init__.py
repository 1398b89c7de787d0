"""Augment: prompts, engines, the ledger of generations, and what makes a trace worth keeping."""
