"""Everything that runs on the device: standard library, numpy, Pillow and one runtime, nothing of the host."""
