"""The example configs that `thoughtmill init` writes: the files of `configs/`, which the wheel carries as
`pipelines/example_configs/`."""

from __future__ import annotations

from pathlib import Path

from sharding.errors import MillError, RequestError

_HERE = Path(__file__).parent
_FOLDERS = (_HERE / "example_configs", _HERE.parent / "configs")


def _folder() -> Path:
    for folder in _FOLDERS:
        if folder.is_dir():
            return folder
    raise MillError("the example configs are missing from this installation: reinstall thoughtmill")


def listing() -> dict[str, str]:
    """Name of each example → its first comment line."""
    return {
        path.stem: path.read_text().splitlines()[0].lstrip("# ").strip() for path in sorted(_folder().glob("*.yaml"))
    }


def write(name: str, target: Path) -> None:
    """Write the example to `target`.

    Raises:
        RequestError: there is no such example, or `target` exists.
        MillError: `target` can't be written.
    """
    source = _folder() / f"{name}.yaml"
    if name not in listing():
        raise RequestError(f"init --example: {name!r} is not one of {', '.join(listing())}")
    try:
        with target.open("x") as file:
            file.write(source.read_text())
    except FileExistsError as error:
        raise RequestError(f"init: {target} exists; name another file") from error
    except OSError as error:
        raise MillError(f"init: cannot write {target}: {error.strerror}") from error
