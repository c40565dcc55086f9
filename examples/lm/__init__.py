"""The parts of the demo `examples/train_lm.py`: a small byte-level mixture-of-experts language model."""
