"""Print the median seconds of a training step (batch size 2, patch planned for Hippocampus) for three networks.

python benchmarks/hippocampus/step_times.py PREPROCESSED/Dataset004_Hippocampus/nnUNetPlans.json
"""

import json
import sys
import time
from pathlib import Path
from statistics import median

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_glims.architectures import GLIMS, LATUPNet

PATCH = (40, 56, 40)
REPEATS = 5

planned = json.loads(Path(sys.argv[1]).read_text())["configurations"]["3d_fullres"]["architecture"]
own = get_network_from_plans(
    planned["network_class_name"], planned["arch_kwargs"], planned["_kw_requires_import"], 1, 3, deep_supervision=True
)
x = torch.randn(2, 1, *PATCH)
for name, network in (("nnU-Net", own), ("GLIMS", GLIMS(1, 3, PATCH)), ("LATUP-Net", LATUPNet(1, 3, PATCH))):
    optimizer = torch.optim.AdamW(network.parameters())
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        outputs = network(x)
        sum(out.square().mean() for out in (outputs if isinstance(outputs, list) else [outputs])).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    print(f"{name}: {median(seconds):.2f} s")
