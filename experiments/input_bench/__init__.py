"""The program that measures how fast images are read and decoded."""
