"""The llm command with an attachment, its model being pyfastv serve by llm's extra-openai-models.yaml, and a second turn.
(The plugin, which loads the model itself, has tests: tests/test_llm_plugin.py.)

    python tests/manual/llm_client.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from clients import ANSWER, CLOCK, QUESTION, Served, main, picture

MODELS = """\
- model_id: served
  model_name: pyfastv
  api_base: {url}/v1
  vision: true
"""


def ask(served: Served) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "extra-openai-models.yaml").write_text(MODELS.format(url=served.url))
        env = os.environ | {"LLM_USER_PATH": folder, "OPENAI_API_KEY": "none"}

        def llm(*arguments: str) -> str:
            command = [sys.executable, "-m", "llm", *arguments]
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
            if done.returncode:
                raise RuntimeError(done.stderr[-500:])
            return done.stdout

        greedy = ("-o", "temperature", "0")
        served.check("llm -a", llm("-m", "served", "-a", str(picture(CLOCK)), QUESTION, *greedy), ANSWER)
        second = llm("-c", "Is the clock digital or analog?", *greedy)
        served.check("llm -c", second, lambda text: "analog" in text.lower())


if __name__ == "__main__":
    main({"ask": ask}, ["llm"])
