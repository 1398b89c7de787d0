"""`python -m thoughtmill` is the command `thoughtmill`, which lives in pipelines.cli."""

from pipelines.cli import main

if __name__ == "__main__":
    main("python -m thoughtmill")
