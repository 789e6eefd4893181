"""The steps of tools/check_gpu.py. Each runs in a process of its own and needs torch only.

A step is a module with ``run(device, quick)``, a generator of records (dictionaries for JSON). What
it has yielded is kept even if it then crashes or hangs.
"""
