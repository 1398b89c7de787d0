"""The n-gram memory: which surprising tokens the corpus itself predicts."""
