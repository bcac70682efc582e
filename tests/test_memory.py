"""A closed runner leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from pyfastv.models import bundled_examples

CYCLES = 25

PROGRAM = """
import json, sys
import psutil
from pyfastv import Runner

picture, question = sys.argv[1:3]
sizes = []
for _ in range(int(sys.argv[3])):
    with Runner(n_ctx=1024) as runner:
        runner.ask(picture, question, max_tokens=4)
    sizes.append(psutil.Process().memory_info().rss)
print(json.dumps(sizes))
"""


def test_twenty_five_runners_one_after_another_take_no_more_memory_than_five(tmp_path: Path) -> None:
    picture, question, _ = bundled_examples()[0]
    command = [sys.executable, "-c", PROGRAM, str(picture), question, str(CYCLES)]
    sizes = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    )
    assert len(sizes) == CYCLES
    growth = max(sizes[5:]) - sizes[4]
    assert growth < 3_000_000, (
        f"{growth / 1e6:.1f} MB more after the fifth: {[s // 1_000_000 for s in sizes]}"
    )
