"""Programs that train, measure and evaluate, and their configs."""

from kd_local.allocator import keep_freed_memory

keep_freed_memory()  # Before any program of this package allocates large arrays.
