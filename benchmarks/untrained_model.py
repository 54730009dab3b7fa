"""Write the model folder of an untrained network, to measure time and memory of predictions.

    python benchmarks/untrained_model.py DATASET TRAINER [PLANS]

nnU-Net's three variables must be set and the data set must be planned. Then run, for example,
`nnUNetv2_predict -d DATASET -c 3d_fullres -tr TRAINER -f 0 -i IMAGES -o OUT -device cpu --disable_tta`.
"""

import sys

import torch
from batchgenerators.utilities.file_and_folder_operations import join, save_json
from nnunetv2.run.run_training import get_trainer_from_args

dataset, name, *plans = sys.argv[1:]
trainer = get_trainer_from_args(dataset, "3d_fullres", 0, name, *plans, device=torch.device("cpu"))
trainer.initialize()
trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
save_json(trainer.plans_manager.plans, join(trainer.output_folder_base, "plans.json"), sort_keys=False)
save_json(trainer.dataset_json, join(trainer.output_folder_base, "dataset.json"), sort_keys=False)
trainer.save_checkpoint(join(trainer.output_folder, "checkpoint_final.pth"))
print(trainer.output_folder)
