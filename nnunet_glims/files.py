"""Reading and writing the small files that state is kept in."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nnunet_glims.errors import UsageError


def read_json(path: Path) -> Any:
    """The file's content; raises `UsageError` naming file and place where it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file") from None
    except ValueError as error:
        raise UsageError(f"{path}: this is not JSON: {error}") from None


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, then rename: a crash leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write JSON as nnU-Net does, indented by 4, atomically."""
    write_text(path, json.dumps(data, indent=4) + "\n")
