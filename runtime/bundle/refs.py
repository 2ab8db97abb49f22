"""Find the file that a reference names: a path, or `package:NAME/FILE`."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from flatfleet.runtime.bundle.yamlmap import shown
from flatfleet.runtime.errors import UsageError, did_you_mean

PACKAGE = "package:"
_SUFFIXES = {".yml", ".yaml", ".json"}


def locate(ref: str, folder: Path) -> Path:
    """Return the absolute path of the file that `ref` names; a relative one is looked up in `folder`.

    `package:NAME/FILE` is FILE in the `machines/` folder of the installed package NAME, or else in NAME itself.
    Raises UsageError, which lists the files that are there.
    """
    if ref.startswith(PACKAGE):
        return _packaged(ref)
    path = Path(ref).expanduser()
    path = path if path.is_absolute() else folder / path
    if path.is_file():
        return path.resolve()
    raise UsageError(_missing(ref, path))


def names_file(ref: str) -> bool:
    """Tell whether an adapter's `ref` is meant as a file (the SDK's rule) and not as the adapter's own identifier."""
    return ref.startswith(("~", PACKAGE)) or "/" in ref or ref.endswith(tuple(_SUFFIXES))


def _packaged(ref: str) -> Path:
    package, _, rest = ref.removeprefix(PACKAGE).partition("/")
    if not package or not rest:
        raise UsageError(f"'{ref}' is incomplete — write package:NAME/FILE, e.g. package:flatfleet/worker.yml")
    try:
        root = resources.files(package)
    except (ImportError, TypeError) as error:
        raise UsageError(f"'{ref}': no package '{package}' is installed here") from error
    for found in (root.joinpath("machines", rest), root.joinpath(rest)):
        if found.is_file():
            if isinstance(found, Path):
                return found.resolve()
            raise UsageError(f"'{ref}': package '{package}' is inside an archive — install it unpacked")
    names = [
        item.name
        for folder in (root.joinpath("machines"), root)
        if folder.is_dir()
        for item in folder.iterdir()
        if Path(item.name).suffix in _SUFFIXES
    ]
    hint = did_you_mean(rest, names) or " — the package holds no YAML file"
    raise UsageError(f"there is no '{rest}' in package '{package}'{hint}")


def _missing(ref: str, path: Path) -> str:
    if path.is_dir():
        return f"'{ref}' is a folder, not a file"
    folder = path.parent
    if not folder.is_dir():
        return f"there is no '{ref}': folder {shown(folder)}/ does not exist"
    names = [item.name for item in folder.iterdir() if item.suffix in _SUFFIXES]
    where = "this folder" if folder.resolve() == Path.cwd() else f"{shown(folder.resolve())}/"
    return f"there is no '{path.name}' in {where}{did_you_mean(path.name, names) or ' — it holds no YAML file'}"
