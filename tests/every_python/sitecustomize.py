"""What each Python that the tests start does first: it looks for garbage less often.

Imports are a million objects that stay; to look through them again and again is a tenth of what importing takes.
"""

import gc

gc.set_threshold(50_000, 20, 20)
