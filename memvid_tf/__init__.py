"""memvid_tf: video detection and segmentation with memory, from training to `.tflite`.

Importing the package is cheap: TensorFlow is loaded only by the modules that need it. The zoo is
built on Keras 2 (`tf_keras`), which TensorFlow uses when the variable below is set before its
first import.
"""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__version__ = "0.1.0"
