"""The meter sees cores at work here and in children, and no GPU where there is none."""

import subprocess
import sys
import time

from tasks.meter import Meter

BUSY = "import time\nwhile time.process_time() < 0.5: pass"


def test_work_of_this_process_counts_and_sleep_does_not():
    meter = Meter()
    while meter.read().cpu < 0.2:
        pass
    time.sleep(0.3)
    taken = meter.read()
    assert taken.wall >= 0.5
    assert 0.2 <= taken.cpu <= taken.wall - 0.25
    assert taken.gpu == 0


def test_work_of_a_child_counts_once_it_has_ended():
    meter = Meter()
    child = subprocess.Popen([sys.executable, "-c", BUSY])
    child.wait()
    assert meter.read().cpu >= 0.5
    assert Meter().read().cpu < 0.1, "a new meter owes nothing for it"


def test_asking_imports_no_torch():
    code = "import sys; from tasks.meter import Meter; Meter().read(); print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"
