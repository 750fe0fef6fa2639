import gc

import pytest

# A fifth of the time went into looking through what is imported.
# Below the 100,000 of the command line, which a run in this process would end.
gc.set_threshold(50_000, 10, 10)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session):
    gc.freeze()
