import gc

import pytest

gc.set_threshold(50_000, 10, 10)  # a fifth of the time went into looking through what is imported


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session):
    gc.freeze()
