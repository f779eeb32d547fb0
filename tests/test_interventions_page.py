"""The page on interventions names every one of them."""

from __future__ import annotations

import re
from pathlib import Path

from probe import discovery

PAGE = Path(__file__).parent.parent / "docs" / "interventions.md"


def test_the_page_names_every_intervention_once_and_no_other() -> None:
    table = PAGE.read_text(encoding="utf-8").split("## Which there are")[1].split("\n## ")[0]
    named = re.findall(r"`([a-z_0-9]+)`", table)
    assert sorted(set(named) - {"align_attention"}) == discovery.names("hooks")
    assert len(named) == len(set(named))
