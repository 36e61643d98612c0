"""Running a bundle: NumPy, LiteRT and OpenCV only.

TensorFlow is never imported here, so a program that only runs a bundle starts in a second. Modules
of this package import each other and `memvid_tf.errors`, nothing else of the project; a test
enforces it.
"""
