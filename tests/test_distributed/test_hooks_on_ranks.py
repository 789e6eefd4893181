"""The hooks in a training on real ranks, through DistributedDataParallel."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from ranks import on_ranks
from toy_training import Model, build_runner, loader

from sn_mm.engine.hooks import PreciseSNHook, SwitchWeightsHook
from sn_mm.engine.training_set import measure_on_training_set


@on_ranks(2)
def test_ranks_save_and_validate_the_same_batch_average_and_log_once(rank: int, size: int) -> None:
    environment = {'LOCAL_RANK': str(rank)}  # as a launcher sets it
    with tempfile.TemporaryDirectory() as own, patch.dict(os.environ, environment):
        folder = [own]
        dist.broadcast_object_list(folder)
        work_dir = Path(folder[0])
        cfg = {'model_wrapper_cfg': {'type': 'MMDistributedDataParallel', 'device_ids': None}}
        hooks = PreciseSNHook(3), SwitchWeightsHook(interval=2)
        runner = build_runner(work_dir, *hooks, launcher='pytorch', cfg=cfg)
        runner.train()

        checkpoint = torch.load(work_dir / 'epoch_2.pth', weights_only=False)
        model = Model()
        model.load_state_dict(checkpoint['state_dict'])
        for key, value in measure_on_training_set(copy.deepcopy(model), loader(), 3).items():
            assert torch.equal(value, runner.model.module.get_buffer(key))
            assert torch.equal(value, checkpoint['state_dict'][key])
        means = runner.model.module.evaluated
        assert torch.equal(means[-1], checkpoint['state_dict']['norm.running_mean'])
        (file,) = work_dir.glob('*/vis_data/scalars.json')
        steps = [json.loads(line) for line in file.read_text().splitlines() if 'sn_layer' in line]
        assert [line['step'] for line in steps] == [0, 2, 4]
        dist.barrier()
