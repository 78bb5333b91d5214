"""The experiments of the ContSup paper, a file a table or figure, and the baselines it compares with."""
