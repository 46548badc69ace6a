"""What the process that services are forked from has imported: seconds that each test would wait for otherwise."""

import eval.comparison
import eval.service.pages
import eval.service.server  # noqa: F401
import tests.unit.eval.service.makers
import tests.unit.eval.service.stand_in  # noqa: F401
