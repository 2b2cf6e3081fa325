from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Matrices this small gain nothing from a second thread, and lose twentyfold where the cores are busy."""
    threads = torch.get_num_threads()
    quick = not any(map(request.node.get_closest_marker, ("slow", "long")))
    torch.set_num_threads(1 if quick else threads)
    yield
    torch.set_num_threads(threads)
