"""What tools/check_gpu.sh runs: tests and measurements in processes of their own, and the report.

It needs torch, triton and pytest only. A measurement is a module with ``run(device, quick)``, a
generator of records (dictionaries for JSON). What it has yielded is kept even if it then crashes or
hangs.
"""
