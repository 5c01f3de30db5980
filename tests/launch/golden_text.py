"""Texts that are compared whole. To accept a change: JAXSCALE_UPDATE_GOLDEN=1 pytest tests/launch; read the diff."""

import os
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"


def check_golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("JAXSCALE_UPDATE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
