"""Tests that were asked for and have no GPU to run on are an error that names them, not a row of skips."""

import pytest
import torch


def pytest_collection_finish(session):
    # Those that -m or a path has left out are gone from the items by now.
    asked = [item.nodeid for item in session.items if item.get_closest_marker("gpu")]
    if asked and not torch.cuda.is_available() and not session.config.option.collectonly:
        names = "\n  ".join(asked)
        pytest.exit(
            f"torch {torch.__version__} sees no GPU here. Not run, and so neither passed nor failed:\n  {names}",
            returncode=1,
        )
