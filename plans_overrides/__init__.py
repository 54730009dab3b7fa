"""Published and recommended setups, one JSON file each; `nnunet_glims.nnunet.plans.override` reads them."""
