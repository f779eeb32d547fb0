"""What a model's folder says of how the model was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel


def specimen_card(model: PreTrainedModel) -> dict[str, Any]:
    """Return the `specimen.json` of the folder that a model was loaded from; empty where there is none."""
    folder = str(getattr(model.config, "_name_or_path", ""))
    path = Path(folder, "specimen.json")
    if not folder or not path.is_file():
        return {}
    said = json.loads(path.read_text(encoding="utf-8"))
    return said if isinstance(said, dict) else {}
