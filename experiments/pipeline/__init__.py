"""The program that measures modules over devices."""
