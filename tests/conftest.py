import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_cases():
    """The folder that NNUNET_GLIMS_REALDATA names: hippocampus/, brats2018/ and chaos_mr/ with public cases."""
    folder = os.environ.get("NNUNET_GLIMS_REALDATA")
    if not folder:
        pytest.skip("NNUNET_GLIMS_REALDATA names no folder with real cases")
    return Path(folder)
