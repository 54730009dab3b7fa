"""Published and recommended setups, one JSON file each; `nnunet_glims.plans` reads them."""
