"""Models and their tokenizers, in folders and behind servers."""
