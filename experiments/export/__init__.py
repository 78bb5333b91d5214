"""The program that writes a trained network for other programs."""
