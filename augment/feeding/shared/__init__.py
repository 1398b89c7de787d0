"""One engine for all processes of a machine: its owner, its clients, and what they say to each other."""
