"""What a recipe with SN needs beside its norms: sn_mm's names, and the importance's learning rate.

The hook sets that rate where the recipe's optim_wrapper has the ImportanceOptimWrapperConstructor.
In schedules as long as the paper's it is that of the other parameters (docs/use/training.md).
"""

custom_imports = dict(imports=['sn_mm'])
custom_hooks = [dict(type='ImportanceHook')]
