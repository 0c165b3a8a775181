"""How TensorFlow is set up before it is imported."""

import os
import platform
import subprocess
import sys

import pytest

ASK = """
from pipeline.system.tensorflow_import import import_tensorflow
import_tensorflow()
from tensorflow.python.util import _pywrap_util_port
print(_pywrap_util_port.IsMklEnabled())
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86 is told to use oneDNN")
@pytest.mark.parametrize(("chosen", "enabled"), [(None, "True"), ("0", "False")])
def test_onednn_is_on_whatever_the_processor_unless_the_user_says_no(chosen, enabled):
    environment = {key: it for key, it in os.environ.items() if key != "TF_ENABLE_ONEDNN_OPTS"}
    if chosen:
        environment["TF_ENABLE_ONEDNN_OPTS"] = chosen
    answer = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == [enabled]
