"""Pages without their figures, which take time and say in their label what they show."""

import pytest
from markupsafe import Markup

from rlhf_recipes import figures


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each figure is its label alone."""
    svg = Markup('<svg id="{}-figure" aria-label="{}"></svg>')
    monkeypatch.setattr(figures, "draw", lambda name, label, *_: svg.format(name, label))
