"""The command `probe init`: a first casebook of one's own, every key explained, with what editors complete it from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from probe.command.completing import casebook_names
from probe.command.exits import exits
from probe.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA_FILE: Final = ".casebook.schema.json"
"""Beside the casebook: a relative address is found without a network, and by everybody who gets the folder."""
SCHEMA_LINE: Final = f"# yaml-language-server: $schema={SCHEMA_FILE}\n"
"""What editors with the YAML language server read; it stands first."""
_TEMPLATE: Final = Path(__file__).with_name("casebook.yaml")


def init(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Casebook to write.")] = Path("casebook.yaml"),
    from_name: Annotated[
        str | None,
        typer.Option(
            "--from", help="Copy one that ships instead (see `probe list casebooks`).", autocompletion=casebook_names
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Write a casebook to start from: it runs as it is, and every key is explained in a comment.

    Beside it lies .casebook.schema.json, which its first line names: editors complete and check keys from it, offline.
    """
    with exits(debug=context.obj):
        texts = {file: started(file.stem, from_name), file.parent / SCHEMA_FILE: schema()}
        write(texts, force=force)
        print(f"{file} is ready. What it takes, and then the run:\n  probe run {file} --dry-run\n  probe run {file}")


def started(stem: str, from_name: str | None = None) -> str:
    """Return a casebook's text under its schema line: the template, or one that ships, called after its file.

    Raises UsageError where none of that name ships.
    """
    if from_name is not None:
        text = _shipped(from_name).read_text(encoding="utf-8")
    else:
        text = _TEMPLATE.read_text(encoding="utf-8")
    name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:61].rstrip("-") or "casebook"
    # Its run's folder is called after it, which is not to be that of the casebook that was copied.
    return SCHEMA_LINE + re.sub(r"(?m)^name: .*$", f"name: {name}", text, count=1)


def schema() -> str:
    """Return the JSON Schema of a casebook as text; the same as docs/casebook.schema.json."""
    import json

    from probe.casebook import Casebook

    form = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Casebook.model_json_schema(),
        "title": "A casebook, as YAML",
    }
    return json.dumps(form, indent=2, ensure_ascii=False) + "\n"


def write(texts: Mapping[Path, str], *, force: bool = False) -> None:
    """Write files whole, all or none; one that is there already with the same text stays.

    Raises UsageError for a file that is there with another text, unless `force`, and for a place that cannot be
    written.
    """
    from probe.storage.durable import write_bytes

    try:
        for path, text in texts.items():
            if path.exists() and not force and path.read_bytes() != text.encode():
                raise UsageError(f"{path} exists and stays as it is; give another name, or --force to replace it")
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, text.encode())
    except OSError as error:
        raise UsageError(f"{error.filename or 'a file'} cannot be written: {error.strerror or error}") from error


def _shipped(name: str) -> Path:
    import difflib

    from probe import discovery

    published = {f"published/{each}": path for each, path in discovery.modules("published").items()}
    ships = discovery.modules("casebooks") | published
    if name not in ships:
        close = difflib.get_close_matches(name, ships, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(ships)}"
        raise UsageError(f"no casebook {name!r} ships: {hint}")
    path = Path(ships[name])
    if not path.is_file():
        raise UsageError(f"the casebook {name!r} ({ships[name]}) is a plugin's, and no file that could be copied")
    return path
