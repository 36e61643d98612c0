"""The native runner: C++ sources in `src`, and the Python that builds it and writes its plans."""
