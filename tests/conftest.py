"""What holds for all tests."""

import hypothesis

# How long an example takes says more about this machine than about the code.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")
