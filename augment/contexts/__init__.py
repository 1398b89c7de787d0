"""What prompts show beside their segment that has to be made or found first: contractions of documents, passages."""
